//! Being let in: what a registry asks for when it says no, and where that comes from.

use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderValue},
};

use super::{Failure, Session, host, passing, wait_asked};
use crate::credentials::secret_header;

const MAX_TOKEN_BYTES: u64 = 256 << 10;

impl Session {
    /// Finds out what the registry wants to see, and gets it.
    pub(super) async fn authorize(
        &self,
        response: &Response,
        had: Option<&HeaderValue>,
        what: &str,
    ) -> Result<(), Failure> {
        let mut held = self.authorization.lock().await;
        if held.as_ref() != had {
            // Another request has been through this meanwhile.
            return Ok(());
        }
        let mut basic = false;
        for value in response.headers().get_all(header::WWW_AUTHENTICATE) {
            let Ok(value) = value.to_str() else { continue };
            let Ok(challenges) = http_auth::parse_challenges(value) else {
                continue;
            };
            for challenge in challenges {
                let parameter = |name: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = parameter("realm")
                        .and_then(|realm| Url::parse(&realm).ok())
                        .ok_or_else(|| self.answered(what, "a token service without address"))?;
                    let token = self.token(realm, parameter("service")).await?;
                    *held = Some(token);
                    return Ok(());
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        match self.credentials.header().filter(|_| basic) {
            // The same again would be refused again.
            Some(value) if had != Some(&value) => {
                *held = Some(value);
                Ok(())
            }
            _ => Err(self.denied()),
        }
    }

    async fn token(&self, mut realm: Url, service: Option<String>) -> Result<HeaderValue, Failure> {
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let what = "the token service";
        self.may_go(&realm, what)?;
        realm
            .query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{}:pull", self.repository));
        let at = host(&realm);
        let mut request = self.http.get(realm);
        if let Some(value) = self.credentials.header() {
            request = request.header(header::AUTHORIZATION, value);
        }
        // Redirects are not followed: credentials go where the registry said, and no further.
        let response = request.send().await.map_err(passing)?;
        let status = response.status();
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(Failure::Passing(
                    format!("status {status} of token service {at}"),
                    wait_asked(&response),
                ));
            }
            _ if status.is_server_error() => {
                return Err(Failure::Passing(
                    format!("status {status} of token service {at}"),
                    wait_asked(&response),
                ));
            }
            _ => return Err(self.answered(what, &format!("status {status} of {at}"))),
        }
        let bytes = self.whole(response, what, MAX_TOKEN_BYTES).await?;
        serde_json::from_slice::<Token>(&bytes)
            .ok()
            .and_then(|answer| answer.token.or(answer.access_token))
            .and_then(|token| secret_header("Bearer", &token))
            .ok_or_else(|| self.answered(what, "no token"))
    }
}
