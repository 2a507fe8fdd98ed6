//! Fetches plugins from the addresses that the settings allow, trusting the certificates of
//! this machine.

use std::io::Read;
use std::time::Duration;

use kymo_actors::plugin_manager::Download;
use kymo_config::settings::Plugins;
use kymo_kernel::{Code, Error, Result};
use ureq::Agent;

use crate::cli::client::{agent, roots};

/// Bytes that are handed over at a time.
const PIECE: usize = 256 << 10;

/// A client for plugins.
pub struct Client(Agent);

impl Client {
    /// A client; none where no address is allowed.
    ///
    /// # Errors
    /// The certificates of this machine cannot be used.
    pub fn new(settings: &Plugins) -> Result<Option<Client>> {
        if settings.install_urls.is_empty() {
            return Ok(None);
        }
        let agent = agent(roots(None)?)
            .timeout_global(Some(Duration::from_millis(settings.fetch_timeout_ms)))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .new_agent();
        Ok(Some(Client(agent)))
    }
}

impl Download for Client {
    fn read(&self, url: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = |what: &dyn std::fmt::Display| {
            Error::new(Code::InvalidInput, format!("fetch {url}: {what}"))
                .with_hint("the server itself must reach the address; or upload the component")
        };
        let answer = self.0.get(url).call().map_err(|error| failed(&error))?;
        if !answer.status().is_success() {
            return Err(failed(&format_args!("the answer is {}", answer.status())));
        }
        let mut body = answer.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            match body.read(&mut piece).map_err(|error| failed(&error))? {
                0 => return Ok(()),
                count => take(&piece[..count])?,
            }
        }
    }
}
