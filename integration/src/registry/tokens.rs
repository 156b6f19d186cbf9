//! A token server, as registries with token authentication name one in their challenges.
//!
//! After the distribution project's "Token Authentication Specification" and its "Token Authentication Implementation":
//! a JWT signed by a certificate that the registry trusts says what its bearer may do.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, anyhow};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Lab, command::Command};

/// The service that registries of a lab call themselves.
pub(super) const SERVICE: &str = "lab";
/// Who signs the tokens.
pub(super) const ISSUER: &str = "token server of the lab";
/// Everybody's password.
pub const PASSWORD: &str = "secret";
/// How long a token is good, in seconds.
const LIFE: i64 = 300;

/// A token server in a lab.
#[derive(Debug)]
pub struct TokenServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate that registries check its tokens with.
    pub(super) certificate: PathBuf,
    state: Arc<State>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct State {
    /// Who may pull what: user and repository.
    grants: Mutex<BTreeSet<(String, String)>>,
    key: EcdsaKeyPair,
    /// The certificate in DER, in Base64.
    certificate: String,
}

impl TokenServer {
    /// Starts a token server on which nobody may do anything yet.
    pub async fn start(lab: &Lab) -> Result<Self> {
        let dir = lab.subdir("tokens")?;
        let (key, certificate) = (dir.join("key.pem"), dir.join("certificate.pem"));
        let make =
            Command::new(lab, "openssl").args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
        let make = make.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=tokens", "-keyout"]);
        make.arg(&key).arg("-out").arg(&certificate).run().await?;
        let key = BASE64_STANDARD.decode(pem_body(&std::fs::read_to_string(key)?))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key)
            .map_err(|error| anyhow!("the key cannot be used: {error}"))?;
        let pem = std::fs::read_to_string(&certificate)?;
        let state = Arc::new(State { grants: Mutex::default(), key, certificate: pem_body(&pem) });

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(listener, state.clone())));
        Ok(Self { address, certificate, state, _stop: stop.drop_guard() })
    }

    /// The realm that registries name.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// Lets a user pull from a repository.
    pub fn grant(&self, user: &str, repository: &str) {
        self.state.grants.lock().insert((user.to_owned(), repository.to_owned()));
    }

    /// A token that lets its bearer pull from a repository, whoever that is, until `life` seconds from now.
    pub fn token(&self, repository: &str, life: i64) -> Result<String> {
        self.state.token(&[repository.to_owned()], life)
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| {
            let answer = state.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl State {
    /// A token for what the user may do of what the scopes ask for; anonymous ones may do nothing.
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            // OAuth 2 is what containerd tries first; not every token server has it.
            return answer(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        let user = match request.headers().get(header::AUTHORIZATION).map(|value| user(value.as_bytes())) {
            Some(None) => return answer(StatusCode::UNAUTHORIZED, "wrong password"),
            Some(user) => user,
            None => None,
        };
        let asked = repositories(request.uri().query().unwrap_or_default());
        let granted: Vec<String> = {
            let grants = self.grants.lock();
            let may = |repository: &String| {
                user.as_ref().is_some_and(|user| grants.contains(&(user.clone(), repository.clone())))
            };
            asked.into_iter().filter(may).collect()
        };
        match self.token(&granted, LIFE) {
            Ok(token) => answer(StatusCode::OK, &json!({ "token": token, "expires_in": LIFE }).to_string()),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn token(&self, repositories: &[String], life: i64) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let grant = |name| json!({ "type": "repository", "name": name, "actions": ["pull"] });
        let head = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": "", "aud": SERVICE, "jti": rand::random::<u64>().to_string(),
            "iat": now.min(now + life), "nbf": now.min(now + life) - 1, "exp": now + life,
            "access": repositories.iter().map(grant).collect::<Vec<_>>(),
        });
        let [head, claims] = [head, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{head}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|error| anyhow!("signing a token: {error}"))?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The user of a `Basic` authorization with the right password.
fn user(authorization: &[u8]) -> Option<String> {
    let encoded = authorization.strip_prefix(b"Basic ")?;
    let pair = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    pair.strip_suffix(PASSWORD)?.strip_suffix(':').map(str::to_owned)
}

/// The repositories that the query's scopes want to pull from: `repository:NAME:pull`.
fn repositories(query: &str) -> Vec<String> {
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    let scopes = pairs.filter(|(name, _)| name == "scope").map(|(_, scope)| scope.into_owned());
    let words: Vec<String> =
        scopes.flat_map(|s| s.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let name = |scope: &String| {
        let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
        actions.split(',').any(|action| action == "pull").then(|| name.to_owned())
    };
    words.iter().filter_map(name).collect()
}

fn answer(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}

/// What stands between the first and the last line, on one line.
fn pem_body(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}
