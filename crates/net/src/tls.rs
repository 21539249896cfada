//! Mutual TLS 1.3 with pinned keys: who is let in is decided by the fingerprint of the key, and by nothing else.
//!
//! No authority, no names (SNI plays no part), no dates, no resumption, no early data, no tickets: a ticket that the
//! peer does not read would end its connection in a reset instead of an end of file.

use std::fmt;
use std::sync::{Arc, OnceLock};

use anabranch_domain::KeyFingerprint;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};

use crate::identity::{Identity, fingerprint_of};

/// What both sides must agree to speak.
pub const ALPN: &[u8] = b"anabranch/1";

/// Is this key let in? Asked once for each connection, so that a key that was removed gets no new one.
pub type Pins = Arc<dyn Fn(&KeyFingerprint) -> bool + Send + Sync>;

/// The one place where the cryptography is chosen.
pub fn provider() -> &'static CryptoProvider {
    static PROVIDER: OnceLock<CryptoProvider> = OnceLock::new();
    PROVIDER.get_or_init(rustls::crypto::ring::default_provider)
}

/// The peer has shown a key that is not let in. It travels inside the error of rustls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyNotPinned {
    /// The key that was asked for; none where any of a set would have been let in.
    pub expected: Option<KeyFingerprint>,
    /// The key that was shown.
    pub found: KeyFingerprint,
}

impl fmt::Display for KeyNotPinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expected {
            Some(expected) => write!(f, "expected the key {expected}, found {}", self.found),
            None => write!(f, "the key {} is none of a member that is known here", self.found),
        }
    }
}

impl std::error::Error for KeyNotPinned {}

impl KeyNotPinned {
    /// Finds it in an error of rustls.
    #[must_use]
    pub fn within(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<Self>().copied()
            }
            _ => None,
        }
    }
}

/// How a member dials: it shows its own key and takes exactly this one.
///
/// # Errors
/// What TLS says; none is expected.
pub fn dialing(identity: &Identity, expected: KeyFingerprint) -> Result<ClientConfig, rustls::Error> {
    let pins: Pins = Arc::new(move |found| *found == expected);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider().clone()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { expected: Some(expected), pins }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

/// How a member listens: it shows its own key and takes those that `pins` lets in.
///
/// # Errors
/// What TLS says; none is expected.
pub fn listening(identity: &Identity, pins: Pins) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider().clone()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Pinned { expected: None, pins }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Takes a certificate whose key is pinned. Its names, dates and issuer are not looked at; that the peer has the
/// private key is shown by the signature over the handshake, which the provider checks.
struct Pinned {
    expected: Option<KeyFingerprint>,
    pins: Pins,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let found = fingerprint_of(certificate)?;
        if (self.pins)(&found) {
            return Ok(());
        }
        let cause = KeyNotPinned { expected: self.expected, found };
        Err(CertificateError::Other(OtherError(Arc::new(cause))).into())
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({:?})", self.expected)
    }
}

fn tls12_refused() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13))
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12_refused()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12_refused()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    /// Shakes hands in memory; the first error of each side.
    fn shake(client: ClientConfig, server: ServerConfig) -> (Option<rustls::Error>, Option<rustls::Error>) {
        let name = ServerName::try_from("anabranch").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let (mut client_error, mut server_error) = (None, None);
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server_error = server_error.or(server.process_new_packets().err());
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client_error = client_error.or(client.process_new_packets().err());
        }
        if client_error.is_none() && server_error.is_none() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            assert_eq!(client.alpn_protocol(), Some(ALPN));
            assert_eq!(server.server_name(), None, "no name goes out");
        }
        (client_error, server_error)
    }

    fn only(fingerprint: KeyFingerprint) -> Pins {
        Arc::new(move |found| *found == fingerprint)
    }

    #[test]
    fn only_pinned_keys_shake_hands() {
        let [a, b, c] = std::array::from_fn(|_| Identity::in_memory().unwrap());
        let listen = |pin: &Identity| listening(&b, only(pin.fingerprint())).unwrap();
        assert_eq!(shake(dialing(&a, b.fingerprint()).unwrap(), listen(&a)), (None, None));

        let (client, _) = shake(dialing(&a, c.fingerprint()).unwrap(), listen(&a));
        let found = KeyNotPinned { expected: Some(c.fingerprint()), found: b.fingerprint() };
        assert_eq!(client.as_ref().and_then(KeyNotPinned::within), Some(found));

        let (client, server) = shake(dialing(&a, b.fingerprint()).unwrap(), listen(&c));
        let found = KeyNotPinned { expected: None, found: a.fingerprint() };
        assert_eq!(server.as_ref().and_then(KeyNotPinned::within), Some(found));
        assert!(matches!(client, Some(rustls::Error::AlertReceived(_))), "{client:?}");
    }

    #[test]
    fn a_certificate_without_its_key_is_no_use() {
        let [a, b, c] = std::array::from_fn(|_| Identity::in_memory().unwrap());
        // The thief shows a's certificate and signs with a key of his own.
        let mut stolen = a.certified().as_ref().clone();
        stolen.key = Arc::clone(&c.certified().key);
        let mut config = dialing(&a, b.fingerprint()).unwrap();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
        let (_, server) = shake(config, listening(&b, only(a.fingerprint())).unwrap());
        let refused = matches!(server, Some(rustls::Error::InvalidCertificate(CertificateError::BadSignature)));
        assert!(refused, "{server:?}");
    }

    #[test]
    fn another_protocol_is_refused() {
        let [a, b] = std::array::from_fn(|_| Identity::in_memory().unwrap());
        let mut other = dialing(&a, b.fingerprint()).unwrap();
        other.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (_, server) = shake(other, listening(&b, only(a.fingerprint())).unwrap());
        assert!(matches!(server, Some(rustls::Error::NoApplicationProtocol)), "{server:?}");
    }

    #[test]
    fn no_certificate_is_refused() {
        let [a, b] = std::array::from_fn(|_| Identity::in_memory().unwrap());
        let mut nobody = dialing(&a, b.fingerprint()).unwrap();
        nobody.client_auth_cert_resolver = Arc::new(NoCertificate);
        let (_, server) = shake(nobody, listening(&b, only(a.fingerprint())).unwrap());
        assert!(matches!(server, Some(rustls::Error::NoCertificatesPresented)), "{server:?}");
    }

    #[derive(Debug)]
    struct NoCertificate;

    impl rustls::client::ResolvesClientCert for NoCertificate {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }

        fn has_certs(&self) -> bool {
            false
        }
    }

    /// A hello of TLS 1.2, by hand, since this build of rustls has no 1.2: no `supported_versions` among the extensions.
    #[test]
    fn tls_1_2_is_refused() {
        let b = Identity::in_memory().unwrap();
        let mut hello = vec![0x03, 0x03];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
        // signature_algorithms: ed25519; supported_groups: x25519.
        let extensions = [0, 13, 0, 4, 0, 2, 0x08, 0x07, 0, 10, 0, 4, 0, 2, 0, 0x1d];
        hello.extend([0, extensions.len() as u8]);
        hello.extend(extensions);
        let mut record = vec![0x16, 0x03, 0x01, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
        record.extend(hello);
        let mut server = ServerConnection::new(Arc::new(listening(&b, Arc::new(|_| true)).unwrap())).unwrap();
        server.read_tls(&mut record.as_slice()).unwrap();
        let error = server.process_new_packets().unwrap_err();
        let cause = rustls::PeerIncompatible::SupportedVersionsExtensionRequired;
        assert_eq!(error, rustls::Error::PeerIncompatible(cause));
    }
}
