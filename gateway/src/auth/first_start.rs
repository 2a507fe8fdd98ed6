//! The first start makes the administrator, and says so once.

use std::net::SocketAddr;

use kymo_config::Settings;
use kymo_kernel::env::Random;
use kymo_kernel::schema::DEFAULT_DATABASE;
use kymo_kernel::user::User;
use kymo_kernel::{Code, Error, Result};

use super::{Accounts, accounts, password};

/// An administrator to be stored, with what only this moment knows.
pub struct FirstStart {
    /// The account, for `Ddl::PutUser`.
    pub user: User,
    /// The password, where it was made up here.
    password: Option<String>,
    /// The API token, where one was made.
    token: Option<String>,
}

/// What has to change so that the administrator of the settings can come in: a new account
/// on an empty store, or a new password where the settings name one that no longer fits.
/// `None` where nothing has to. Hashes passwords: it belongs on a thread that may block.
///
/// # Errors
/// `invalid_settings` for a name or a password that no account may have.
pub fn administrator(
    settings: &Settings,
    known: &dyn Accounts,
    random: &dyn Random,
) -> Result<Option<FirstStart>> {
    let auth = &settings.auth;
    if !auth.enabled {
        return Ok(None);
    }
    let existing = known.user(&auth.admin_user);
    let (password, tokens, made_up) = match (&existing, &auth.admin_password) {
        (Some(user), Some(set)) if !password::verify(set, &user.argon2) => {
            (set.clone(), Vec::new(), false)
        }
        (Some(_), _) => return Ok(None),
        (None, _) if !known.is_empty() => return Ok(None),
        (None, Some(set)) => (set.clone(), vec![password::generate_token(random)], false),
        (None, None) => (password::generate(random), vec![password::generate_token(random)], true),
    };
    let texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut user = accounts::make(&auth.admin_user, &password, true, &texts, random)
        .map_err(|error| Error::new(Code::Settings, format!("auth: {}", error.message())))?;
    if let Some(existing) = existing {
        user.tokens = existing.tokens;
    }
    Ok(Some(FirstStart {
        user,
        password: made_up.then_some(password),
        token: tokens.into_iter().next(),
    }))
}

impl FirstStart {
    /// The API token, where one was made: for the credentials file of the command line.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The lines to print once, with commands ready to paste; empty where nothing was made
    /// that the operator does not know.
    #[must_use]
    pub fn welcome(&self, http: SocketAddr, pg: SocketAddr, tls: bool) -> String {
        let Some(token) = &self.token else { return String::new() };
        let name = &self.user.name;
        let (scheme, sslmode) = if tls { ("https", "require") } else { ("http", "prefer") };
        let (http, pg) = (reachable(http), reachable(pg));
        let secret = match &self.password {
            Some(password) => format!("  password  {password}\n"),
            None => "  password  as set in auth.admin_password\n".to_owned(),
        };
        let login = match &self.password {
            Some(password) => format!("PGPASSWORD={password} "),
            None => String::new(),
        };
        format!(
            "\nThis is the first start. The administrator has been created; these lines are \
             shown once.\n\n  user      {name}\n{secret}  token     {token}\n\n\
             {login}psql 'host={} port={} user={name} dbname={DEFAULT_DATABASE} \
             sslmode={sslmode}'\n\
             curl {scheme}://{http}/api/v3/query_sql -H 'Authorization: Bearer {token}' \
             -G --data-urlencode 'db={DEFAULT_DATABASE}' --data-urlencode 'q=SELECT 1'\n",
            pg.ip(),
            pg.port(),
        )
    }
}

/// An address to connect to: that of this machine where all are listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let local = if address.is_ipv4() {
        [127, 0, 0, 1].into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    };
    SocketAddr::new(local, address.port())
}
