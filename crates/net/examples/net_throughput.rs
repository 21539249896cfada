//! Prints what a link carries over loopback: content, records in pages, and small messages there and back.
//!
//! `cargo run --release -p anabranch-net --example net_throughput [MiB]`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for people")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_model::{ChangeNumber, FolderId};
use anabranch_net::message::{Envelope, Message, Page, Piece};
use anabranch_net::{Accepted, Identity, Lane, Link, Listener, dial};

fn envelope(message: Message) -> Envelope {
    Envelope { folder: FolderId([9; 16]), message }
}

/// One page of about 1 MiB in records of 200 bytes.
fn page() -> Message {
    Message::Page(Page { rows: vec![vec![3; 200]; 5000], ..Page::default() })
}

async fn stream(from: &Link, to: &mut Link, count: u64, message: impl Fn(u64) -> Message) -> Duration {
    let begun = Instant::now();
    let sending = async {
        for at in 0..count {
            from.sender.send(envelope(message(at))).await.unwrap();
        }
    };
    let taking = async {
        for _ in 0..count {
            to.receiver.recv().await.unwrap().unwrap();
        }
    };
    tokio::join!(sending, taking);
    begun.elapsed()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mib: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1024);
    let [up, down] = std::array::from_fn(|_| Identity::in_memory().unwrap());
    let pinned = down.fingerprint();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut listener = Listener::bind(any, &up, Arc::new(move |found| *found == pinned)).await.unwrap();
    let address = listener.local_address().to_string();
    let begun = Instant::now();
    let mut here = dial(&address, &down, up.fingerprint(), "", Duration::from_secs(10)).await.unwrap();
    let Some(Accepted::Link(mut there)) = listener.accept().await else { panic!("no link") };
    println!(
        "link made in {:.1} ms, {} bytes",
        begun.elapsed().as_secs_f64() * 1e3,
        here.counters.sent_bytes() + here.counters.received_bytes()
    );

    let data = vec![7; 1 << 20];
    let content = |request| Message::Pieces { request, first: 0, pieces: vec![Piece::Data(data.clone().into())] };
    let time = stream(&there, &mut here, mib, content).await.as_secs_f64();
    let carried = here.counters.lane(Lane::Bulk).received_bytes() as f64 / (mib << 20) as f64;
    println!("content: {:.0} MiB/s, {carried:.4} bytes on the wire for each", mib as f64 / time);

    let pages = mib / 4;
    let time = stream(&there, &mut here, pages, |_| page()).await.as_secs_f64();
    println!("pages: {:.0} records/s", (pages * 5000) as f64 / time);

    let count = 200_000;
    let time = stream(&there, &mut here, count, |at| Message::Grown { number: ChangeNumber(at) }).await.as_secs_f64();
    println!("small messages: {:.0}/s", count as f64 / time);

    let rounds = 5000;
    let begun = Instant::now();
    for request in 0..rounds {
        here.sender.send(envelope(Message::AskSums { request })).await.unwrap();
        there.receiver.recv().await.unwrap().unwrap();
        there.sender.send(envelope(Message::Grown { number: ChangeNumber(request) })).await.unwrap();
        here.receiver.recv().await.unwrap().unwrap();
    }
    println!("there and back: {:.0} µs", begun.elapsed().as_secs_f64() * 1e6 / rounds as f64);
}
