//! What every command works with: the terminal and the configuration.

use nullspace_client::Client;
use nullspace_client::config::{Arguments, Config, Surroundings};

use crate::Global;
use crate::error::CliError;
use crate::ui::Ui;

/// See the module's docs.
pub(crate) struct App {
    pub(crate) ui: Ui,
    pub(crate) config: Config,
    pub(crate) surroundings: Surroundings,
    arguments: Arguments,
}

impl App {
    pub(crate) fn new(ui: Ui, global: &Global) -> Self {
        let surroundings = Surroundings::of_process();
        let arguments = Arguments {
            base_url: global.api_url.clone(),
            api_key: None,
        };
        Self {
            ui,
            config: surroundings.resolve(&arguments),
            surroundings,
            arguments,
        }
    }

    /// A client of the configured server, which needs a key.
    pub(crate) fn client(&self) -> Result<Client, CliError> {
        if self.config.api_key.is_none() {
            return Err(nullspace_client::Error::MissingApiKey.into());
        }
        Ok(Client::new(&self.config)?)
    }

    /// The configuration as it is now: a server that was just started may have put a key there.
    pub(crate) fn config_now(&self) -> Config {
        self.surroundings.resolve(&self.arguments)
    }

    /// A variable of this process's environment.
    pub(crate) fn var(&self, name: &str) -> Option<String> {
        self.surroundings.env.get(name).cloned()
    }
}
