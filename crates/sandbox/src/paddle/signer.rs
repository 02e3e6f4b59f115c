//! Paddle's side of the signatures: RSA-4096 with SHA-1 over PHP's serialization for Classic, HMAC-SHA-256 for Billing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use rsa::pkcs1v15::SigningKey;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _, LineEnding};
use rsa::signature::{SignatureEncoding as _, Signer as _};
use rsa::{PrivateKey, PublicKey};
use sha1::Sha1;

/// Signs Classic alerts with an RSA-4096 key, which is what every account at Paddle has.
#[derive(Clone)]
pub struct ClassicSigner {
    key: Arc<SigningKey<Sha1>>,
    public_key_pem: Arc<str>,
}

impl fmt::Debug for ClassicSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClassicSigner").finish_non_exhaustive()
    }
}

impl ClassicSigner {
    /// The key of this machine's sandbox: made at its first use, kept in the directory for temporary files, and shared by
    /// all processes, since making one takes a second and each test is a process.
    ///
    /// # Errors
    /// When the file can be neither read nor written, or holds something else.
    pub fn cached() -> anyhow::Result<Self> {
        static CACHED: OnceLock<ClassicSigner> = OnceLock::new();
        if let Some(signer) = CACHED.get() {
            return Ok(signer.clone());
        }
        let signer = Self::from_file(&cache_file())?;
        Ok(CACHED.get_or_init(|| signer).clone())
    }

    /// The PKCS#8 key in `path`, which is made if there is none.
    ///
    /// # Errors
    /// When the file can be neither read nor written, or holds something else.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            write_new(path, &new_key()?).with_context(|| format!("failed to write the key {}", path.display()))?;
        }
        let key = fs::read(path).with_context(|| format!("failed to read the key {}", path.display()))?;
        Self::from_pkcs8(&key).with_context(|| format!("{} is not an RSA key in PKCS#8 (DER)", path.display()))
    }

    /// A key of its own, for what must not verify.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> anyhow::Result<Self> {
        Self::from_pkcs8(&new_key()?)
    }

    fn from_pkcs8(der: &[u8]) -> anyhow::Result<Self> {
        let key = PrivateKey::from_pkcs8_der(der)?;
        let public_key_pem = PublicKey::from(&key).to_public_key_pem(LineEnding::LF)?.into();
        Ok(Self { key: Arc::new(SigningKey::new(key)), public_key_pem })
    }

    /// For `paddle.classic.public_keys`.
    #[must_use]
    pub fn public_key_pem(&self) -> &str {
        &self.public_key_pem
    }

    /// The `p_signature` of these fields. They need not be text: to PHP a string is bytes.
    #[must_use]
    pub fn sign<T: AsRef<[u8]>>(&self, fields: &BTreeMap<T, T>) -> String {
        STANDARD.encode(self.key.sign(&php_serialize(fields)).to_vec())
    }
}

/// What PHP's `serialize` makes of an array of strings: lengths are in bytes. The map is in byte order already.
fn php_serialize<T: AsRef<[u8]>>(fields: &BTreeMap<T, T>) -> Vec<u8> {
    let mut out = format!("a:{}:{{", fields.len()).into_bytes();
    for (name, value) in fields {
        for part in [name.as_ref(), value.as_ref()] {
            out.extend_from_slice(format!("s:{}:\"", part.len()).as_bytes());
            out.extend_from_slice(part);
            out.extend_from_slice(b"\";");
        }
    }
    out.push(b'}');
    out
}

fn new_key() -> anyhow::Result<Vec<u8>> {
    // Here and not in the rsa crate, which takes minutes over it without optimisation.
    let pair = KeyPair::generate(KeySize::Rsa4096).map_err(|_| anyhow!("failed to make an RSA key"))?;
    let der = pair.as_der().map_err(|_| anyhow!("failed to encode the RSA key"))?;
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = der;
    Ok(der.as_ref().to_vec())
}

/// Where this user's sandboxes keep what takes long to make: in the directory for temporary files.
#[must_use]
pub fn cache_directory() -> PathBuf {
    let user = std::env::var("USER").unwrap_or_else(|_| "nobody".to_owned());
    std::env::temp_dir().join(format!("oarlock-sandbox-{user}"))
}

fn cache_file() -> PathBuf {
    cache_directory().join("classic-rsa4096.pk8")
}

/// Written beside its place and linked into it, so that no process ever reads half a key and the first one wins.
fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?.write_all(content)?;
    let linked = match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    };
    fs::remove_file(&draft)?;
    linked
}

/// Signs Billing alerts with the secrets of a notification destination: two during a rotation.
#[derive(Clone)]
pub struct BillingSigner {
    secrets: Vec<String>,
    at: Option<DateTime<Utc>>,
}

impl fmt::Debug for BillingSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BillingSigner").finish_non_exhaustive()
    }
}

impl BillingSigner {
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self::rotating([secret])
    }

    /// One `h1` for each secret.
    #[must_use]
    pub fn rotating<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        Self { secrets: secrets.into_iter().map(str::to_owned).collect(), at: None }
    }

    /// Signs as if it were this time, and not as it is.
    #[must_use]
    pub fn at(mut self, time: DateTime<Utc>) -> Self {
        self.at = Some(time);
        self
    }

    /// The value of `Paddle-Signature` for this body.
    #[must_use]
    pub fn sign(&self, body: &[u8]) -> String {
        let ts = self.at.unwrap_or_else(Utc::now).timestamp();
        let mut header = format!("ts={ts}");
        for secret in &self.secrets {
            let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
            context.update(format!("{ts}:").as_bytes());
            context.update(body);
            let tag = context.sign();
            let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            header += &format!(";h1={hex}");
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, UnparsedPublicKey};

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn serialized_as_php_does_it() {
        let check = |pairs: &[(&str, &str)], expected: &str| {
            assert_eq!(String::from_utf8(php_serialize(&fields(pairs))).unwrap(), expected);
        };
        check(&[("b", ""), ("a", "1")], r#"a:2:{s:1:"a";s:1:"1";s:1:"b";s:0:"";}"#);
        check(&[("name", "Jürgen"), ("q", "\"x\";")], r#"a:2:{s:4:"name";s:7:"Jürgen";s:1:"q";s:4:""x";";}"#);
        check(&[("a", ""), ("B", ""), ("_c", "")], r#"a:3:{s:1:"B";s:0:"";s:2:"_c";s:0:"";s:1:"a";s:0:"";}"#);
    }

    #[test]
    fn a_classic_signature_verifies_and_is_quick() {
        let signer = ClassicSigner::cached().unwrap();
        let fields = fields(&[("alert_id", "1"), ("customer_name", "Zoë 🙂")]);
        let started = Instant::now();
        let signature = STANDARD.decode(signer.sign(&fields)).unwrap();
        let took = started.elapsed();
        assert_eq!(signature.len(), 512);
        let pem: String = signer.public_key_pem().lines().filter(|line| !line.starts_with("---")).collect();
        let public =
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, STANDARD.decode(pem).unwrap());
        public.verify(&php_serialize(&fields), &signature).unwrap();
        assert!(public.verify(b"something else", &signature).is_err());
        assert!(took < Duration::from_millis(250), "signing took {took:?}: is optimisation on for the big numbers?");
    }

    #[test]
    fn a_key_file_is_made_once() {
        let directory = std::env::temp_dir().join(format!("oarlock-sandbox-test-{}", std::process::id()));
        let path = directory.join("key.pk8");
        let first = ClassicSigner::from_file(&path).unwrap();
        let second = ClassicSigner::from_file(&path).unwrap();
        assert_eq!(first.public_key_pem(), second.public_key_pem());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "the draft is gone");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_billing_signature_verifies() {
        let time = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let header = BillingSigner::rotating(["old", "new"]).at(time).sign(b"{}");
        let (ts, rest) = header.split_once(';').unwrap();
        assert_eq!(ts, "ts=1700000000");
        for (part, secret) in rest.split(';').zip(["old", "new"]) {
            let hex = part.strip_prefix("h1=").unwrap();
            let tag: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            hmac::verify(&key, b"1700000000:{}", &tag).unwrap();
        }
    }
}
