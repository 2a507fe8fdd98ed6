//! Which web pages may open a WebSocket.
//!
//! Browsers let any page connect to any address, also to one on the reader's own machine, and
//! leave it to the server to refuse; programs send no `Origin` and are not concerned.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use kymo_kernel::{Code, Error, Result};

/// Refuses pages of other sites than the server's own and those that are allowed.
///
/// # Errors
/// `not_authorized`, naming the origin.
pub fn check(headers: &HeaderMap, allowed: &[String]) -> Result<()> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = origin.split_once("://").is_some_and(|(_, site)| site.eq_ignore_ascii_case(host));
    if own || allowed.iter().any(|each| each.eq_ignore_ascii_case(origin)) {
        return Ok(());
    }
    let shown: String = origin.chars().take(100).collect();
    Err(Error::new(Code::NotAuthorized, format!("pages of {shown:?} may not connect"))
        .with_hint("an administrator can add the site to live.allowed_origins"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pages_and_programs_come_in_and_others_where_allowed() {
        let allowed = ["https://grafana.example".to_owned()];
        let outcome = |origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "db.example:7878".parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            check(&headers, &allowed).map_err(|error| error.code())
        };
        for origin in [None, Some("http://db.example:7878"), Some("https://grafana.example")] {
            assert_eq!(outcome(origin), Ok(()), "{origin:?}");
        }
        for origin in
            ["null", "http://db.example", "https://evil.example", "http://grafana.example"]
        {
            assert_eq!(outcome(Some(origin)), Err(Code::NotAuthorized), "{origin}");
        }
    }
}
