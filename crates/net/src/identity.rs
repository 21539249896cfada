//! The identity of a member: a key pair and a self-signed certificate around it.
//!
//! The certificate says nothing that anybody relies on: partners know the key by its fingerprint (design, section 13),
//! so nothing expires and no authority is asked. The key is made once, in the member's data directory:
//!
//! | file | holds | mode |
//! | --- | --- | --- |
//! | `identity.crt` | the certificate, PEM | 0644 |
//! | `identity.key` | the private key (Ed25519, PKCS#8), PEM | 0600 |
//!
//! The key is written last: where it is, the identity is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_domain::KeyFingerprint;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use crate::tls;

/// The file of the certificate, in the data directory.
pub const CERTIFICATE_FILE: &str = "identity.crt";
/// The file of the private key, in the data directory.
pub const KEY_FILE: &str = "identity.key";

/// Why an identity cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is one: it is never replaced, since partners know this member by it.
    #[error("there is already an identity at {0}; a member keeps its key for life")]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no identity at {0}; `anabranch init` or `anabranch join` makes one")]
    Missing(PathBuf),
    /// Others than the owner may read or write the private key.
    #[error(
        "others may read the private key {path} (mode {mode:04o}); set it to 0600, and if it may have been copied, give this member a new identity"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a PEM file of the expected kind.
    #[error("{path} does not hold {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// What the reader says.
        source: rustls::pki_types::pem::Error,
    },
    /// The two files do not belong together, or the key is of a kind that is not supported.
    #[error("the certificate and the key in {path} do not make an identity")]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// A verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key pair cannot be made.
    #[error("cannot make a key pair")]
    Generate(#[source] rcgen::Error),
}

/// A member's key pair with its certificate. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    fingerprint: KeyFingerprint,
}

impl Identity {
    /// Makes a new identity and stores it durably in `directory`, which must exist.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] where there is one, so that a second `init` destroys nothing.
    pub fn create(directory: &Path) -> Result<Self, IdentityError> {
        let key_path = directory.join(KEY_FILE);
        if key_path.symlink_metadata().is_ok() {
            return Err(IdentityError::Exists(key_path));
        }
        let (certificate, key) = generate().map_err(IdentityError::Generate)?;
        write_durably(directory, CERTIFICATE_FILE, 0o644, certificate.as_bytes())?;
        write_durably(directory, KEY_FILE, 0o600, key.as_bytes())?;
        Self::load(directory)
    }

    /// Reads the identity of this data directory.
    ///
    /// # Errors
    /// [`IdentityError`] says which file is wrong and how.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let key_path = directory.join(KEY_FILE);
        let key_pem = match fs::read(&key_path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(IdentityError::Missing(key_path)),
            Err(source) => return Err(IdentityError::Io { action: "read", path: key_path, source }),
        };
        let mode = fs::metadata(&key_path)
            .map_err(|source| IdentityError::Io { action: "examine", path: key_path.clone(), source })?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: key_path, mode });
        }
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|source| IdentityError::Content {
            path: key_path,
            what: "a private key",
            source,
        })?;
        let path = directory.join(CERTIFICATE_FILE);
        let pem = fs::read(&path).map_err(|source| IdentityError::Io { action: "read", path: path.clone(), source })?;
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|source| IdentityError::Content {
            path,
            what: "a certificate",
            source,
        })?;
        Self::of(certificate, key).map_err(|source| IdentityError::Mismatch { path: directory.to_path_buf(), source })
    }

    /// Makes an identity that lives in memory only: for rehearsals and tests.
    ///
    /// # Errors
    /// [`IdentityError::Generate`], [`IdentityError::Mismatch`]: neither is expected.
    pub fn in_memory() -> Result<Self, IdentityError> {
        let (certificate, key) = generate().map_err(IdentityError::Generate)?;
        let of_memory = |what| move |source| IdentityError::Content { path: PathBuf::new(), what, source };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(of_memory("a private key"))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(of_memory("a certificate"))?;
        Self::of(certificate, key).map_err(|source| IdentityError::Mismatch { path: PathBuf::new(), source })
    }

    fn of(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<Self, rustls::Error> {
        let fingerprint = fingerprint_of(&certificate)?;
        let certified = CertifiedKey::from_der(vec![certificate], key, tls::provider())?;
        Ok(Self { certified: Arc::new(certified), fingerprint })
    }

    /// What partners pin.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        self.fingerprint
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// The fingerprint of the key in a certificate.
///
/// # Errors
/// What TLS says of a certificate that cannot be read.
pub fn fingerprint_of(certificate: &CertificateDer<'_>) -> Result<KeyFingerprint, rustls::Error> {
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &key).as_ref());
    Ok(KeyFingerprint(out))
}

/// A new certificate and its key, as PEM. Its names and dates mean nothing.
fn generate() -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let certificate = rcgen::CertificateParams::new(vec!["anabranch".to_owned()])?.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Writes beside, makes durable, renames, and makes the name durable. The file never exists with another mode.
fn write_durably(directory: &Path, name: &str, mode: u32, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = directory.join(name);
    let beside = directory.join(format!("{name}.new"));
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| IdentityError::Io { action, path, source }
    };
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &beside)(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(failed("create", &beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &beside))?;
    fs::rename(&beside, &path).map_err(failed("create", &path))?;
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed("make durable", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Identity::load(directory.path()), Err(IdentityError::Missing(_))));
        let made = Identity::create(directory.path()).unwrap();
        assert_eq!(Identity::load(directory.path()).unwrap().fingerprint(), made.fingerprint());
        assert!(matches!(Identity::create(directory.path()), Err(IdentityError::Exists(_))));
        let mode = fs::metadata(directory.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_ne!(Identity::in_memory().unwrap().fingerprint(), made.fingerprint());
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn the_fingerprint_is_that_of_the_key_alone() {
        // SHA-256 over the fixed head of an Ed25519 SubjectPublicKeyInfo and the key's 32 bytes.
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let whole = [&head, rcgen::PublicKeyData::der_bytes(&key)].concat();
        let want = ring::digest::digest(&ring::digest::SHA256, &whole);
        for name in ["one", "two"] {
            let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
            assert_eq!(fingerprint_of(certificate.der()).unwrap().0, want.as_ref());
        }
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let spoilt = |spoil: &dyn Fn(&Path)| {
            let directory = tempfile::tempdir().unwrap();
            Identity::create(directory.path()).unwrap();
            spoil(directory.path());
            Identity::load(directory.path()).unwrap_err()
        };
        let exposed = spoilt(&|d| fs::set_permissions(d.join(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap());
        assert!(matches!(exposed, IdentityError::Exposed { mode: 0o640, .. }), "{exposed}");
        let garbage = spoilt(&|d| fs::write(d.join(KEY_FILE), "garbage").unwrap());
        assert!(garbage.to_string().contains("identity.key does not hold a private key"), "{garbage}");
        let no_certificate = spoilt(&|d| fs::remove_file(d.join(CERTIFICATE_FILE)).unwrap());
        assert!(matches!(no_certificate, IdentityError::Io { action: "read", .. }), "{no_certificate}");
        let foreign = spoilt(&|d| fs::write(d.join(CERTIFICATE_FILE), generate().unwrap().0).unwrap());
        assert!(matches!(foreign, IdentityError::Mismatch { .. }), "{foreign}");
    }
}
