//! Who gets in and who does not.

use std::sync::atomic::{AtomicU64, Ordering};

use super::accounts::{InMemory, make};
use super::first_start::administrator;
use super::*;

/// Bits that differ each time but are the same in each run.
struct Counting(AtomicU64);

impl Random for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            let n = self.0.fetch_add(1, Ordering::Relaxed);
            *byte = (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
        }
    }
}

fn random() -> Counting {
    Counting(AtomicU64::new(1))
}

fn password_of(user: &str, password: &str) -> Credentials {
    Credentials::Password { user: user.into(), password: password.into() }
}

#[tokio::test]
async fn password_token_and_token_as_password_get_in() {
    let random = random();
    let accounts = InMemory::new(vec![make("ada", "secret", true, &["tok-1"], &random).unwrap()]);
    let door =
        Authenticator::new(&Settings::default(), Arc::clone(&accounts) as _, &random).unwrap();
    for good in [
        password_of("ada", "secret"),
        password_of("ada", "secret"),
        Credentials::Token("tok-1".into()),
        password_of("ada", "tok-1"),
    ] {
        assert_eq!(&*door.check(&good).await.unwrap().name, "ada");
    }
    for bad in [
        password_of("ada", "Secret"),
        password_of("eve", "secret"),
        Credentials::Token("tok-2".into()),
        Credentials::Token(String::new()),
        password_of("ada", ""),
    ] {
        let error = door.check(&bad).await.unwrap_err();
        assert_eq!(error.code(), Code::NotAuthenticated);
        assert_eq!(error.message(), "authorization failed");
    }
}

#[tokio::test]
async fn a_changed_password_is_not_remembered() {
    let random = random();
    let accounts = InMemory::new(vec![make("ada", "old", true, &[], &random).unwrap()]);
    let door =
        Authenticator::new(&Settings::default(), Arc::clone(&accounts) as _, &random).unwrap();
    door.check(&password_of("ada", "old")).await.unwrap();
    accounts.put(make("ada", "new", true, &[], &random).unwrap());
    assert!(door.check(&password_of("ada", "old")).await.is_err());
    assert!(door.check(&password_of("ada", "new")).await.is_ok());
}

#[test]
fn the_cache_is_bounded() {
    let random = random();
    let user = make("ada", "x", true, &[], &random).unwrap();
    let proven = Proven::new(2, &random);
    for password in ["a", "b", "c"] {
        proven.remember(&user, password);
    }
    assert!(!proven.knows(&user, "a"));
    assert!(proven.knows(&user, "b") && proven.knows(&user, "c"));
}

#[test]
fn headers_of_every_known_form_are_read() {
    let token = |text: &str| Credentials::Token(text.into());
    for (header, expected) in [
        ("Bearer abc", token("abc")),
        ("bearer  abc ", token("abc")),
        ("Token abc", token("abc")),
        ("Token ada:secret", password_of("ada", "secret")),
        ("Basic YWRhOnNlY3JldDp4", password_of("ada", "secret:x")),
        ("Basic OnRvaw==", token("tok")),
    ] {
        assert_eq!(Credentials::from_header(header.as_bytes()).unwrap(), expected, "{header}");
    }
    for bad in ["", "Bearer", "Bearer ", "Digest x", "Basic !!", "Basic YWRh", "\u{ff}"] {
        let error = Credentials::from_header(bad.as_bytes()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput, "{bad}");
    }
    assert_eq!(Credentials::from_header(b"Bearer \xff").unwrap_err().code(), Code::InvalidInput);
    assert_eq!(Credentials::from_parameters(Some("ada"), Some("s")), Some(password_of("ada", "s")));
    assert_eq!(Credentials::from_parameters(Some(""), Some("t")), Some(token("t")));
    assert_eq!(Credentials::from_parameters(Some("ada"), None), None);
}

#[test]
fn credentials_are_never_printed() {
    let shown = format!("{:?} {:?}", Credentials::Token("tok".into()), password_of("ada", "pw"));
    assert!(!shown.contains("tok\"") && !shown.contains("pw"), "{shown}");
}

#[test]
fn the_first_start_makes_an_administrator_once() {
    let random = random();
    let settings = Settings::default();
    let accounts = InMemory::new(Vec::new());
    let made = administrator(&settings, &*accounts, &random).unwrap().unwrap();
    let text = made.welcome(([0, 0, 0, 0], 7878).into(), ([127, 0, 0, 1], 5433).into(), false);
    assert!(text.contains("PGPASSWORD=") && text.contains("http://127.0.0.1:7878/"), "{text}");
    let line = text.lines().find(|line| line.trim_start().starts_with("password ")).unwrap();
    assert!(password::verify(line.split_whitespace().last().unwrap(), &made.user.argon2));
    let line = text.lines().find(|line| line.trim_start().starts_with("token ")).unwrap();
    let digest = password::token_digest(line.split_whitespace().last().unwrap());
    assert_eq!(made.user.tokens, [digest]);
    accounts.put(made.user);
    assert!(administrator(&settings, &*accounts, &random).unwrap().is_none());
}

#[test]
fn a_password_from_the_settings_is_honoured_and_not_printed() {
    let random = random();
    let mut settings = Settings::default();
    settings.auth.admin_password = Some("first-secret".into());
    let accounts = InMemory::new(Vec::new());
    let made = administrator(&settings, &*accounts, &random).unwrap().unwrap();
    let address = ([127, 0, 0, 1], 1).into();
    assert!(!made.welcome(address, address, false).contains("first-secret"));
    let tokens = made.user.tokens.clone();
    accounts.put(made.user);
    assert!(administrator(&settings, &*accounts, &random).unwrap().is_none());

    settings.auth.admin_password = Some("second-secret".into());
    let changed = administrator(&settings, &*accounts, &random).unwrap().unwrap();
    assert!(password::verify("second-secret", &changed.user.argon2));
    assert_eq!(changed.user.tokens, tokens, "tokens outlive a new password");
    assert!(changed.welcome(address, address, false).is_empty());
}

#[test]
fn without_authentication_only_loopback_is_served() {
    let mut settings = Settings::default();
    settings.auth.enabled = false;
    for good in ["127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8"] {
        settings.server.http_host = good.into();
        settings.server.pg_host = good.into();
        assert!(check_open_door(&settings).is_ok(), "{good}");
    }
    for bad in ["0.0.0.0", "::", "192.168.0.7", "example.org", ""] {
        settings.server.http_host = bad.into();
        assert_eq!(check_open_door(&settings).unwrap_err().code(), Code::Settings, "{bad}");
        settings.auth.enabled = true;
        assert!(check_open_door(&settings).is_ok());
        settings.auth.enabled = false;
    }
}

#[test]
fn passwords_use_the_whole_alphabet_and_differ() {
    let random = random();
    let (one, two) = (password::generate(&random), password::generate_token(&random));
    assert_eq!(one.len(), 20);
    assert_eq!(two.len(), 45);
    assert_ne!(one, password::generate(&random));
}
