//! TLS clients, made once for all rules that want the same.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use foldhash::HashMap;

use rustls::{
    ClientConfig, SupportedProtocolVersion,
    client::{ClientSessionMemoryCache, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    Dated, TlsError, Validity,
    handshake::{HTTP1, HTTP2},
    material::{Material, Reader, Store, content, parse_chain, parse_crls, parse_key, parse_roots},
    refusal::Offer,
    roots::RootsError,
    sessions::{OF_A_SERVER, Sessions},
    verify::{Expected, PeerVerifier, PinMismatch, Trust},
};
use crate::{
    config::{Location, Progress},
    policy::{HostName, HostPattern, Pem, PinsMode, Requirements, Roots, TlsSettings, TlsVersion, Verify},
};

/// Servers whose sessions the client remembers which all rules share that say nothing special.
const SERVERS: usize = 1024;
/// The same for each of the others, of which there can be as many as there are rules.
const FEW_SERVERS: usize = 32;

/// How to originate TLS for one rule.
#[derive(Clone, Debug)]
pub struct Originator {
    client: Arc<Client>,
    /// Whom to ask for (SNI); None for whomever the request is for.
    server_name: Option<ServerName<'static>>,
    /// Whom to ask for where a request is for no name: applications also reach a host by its address. None for a wildcard.
    host: Option<ServerName<'static>>,
}

impl Originator {
    /// What connections are made by. It also remembers sessions, by the name of the server.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.client.config
    }

    /// What origins are verified by.
    pub(super) fn verifier(&self) -> &Arc<PeerVerifier> {
        &self.client.verifier
    }

    /// The same with connections made by `config`, which is to be of the same settings.
    pub(super) fn with_config(&self, config: ClientConfig) -> Self {
        let Client { verifier, offer, material, shown, .. } = &*self.client;
        let (verifier, offer, material, shown) = (verifier.clone(), *offer, material.clone(), *shown);
        let client = Arc::new(Client { config: Arc::new(config), verifier, offer, material, shown });
        Self { client, server_name: self.server_name.clone(), host: self.host.clone() }
    }

    /// What origins are offered.
    pub(super) fn offer(&self) -> Offer {
        self.client.offer
    }

    /// Whom to ask for, for a request to `host` (lower case, no port, no trailing dot). None if TLS has no such name.
    pub fn server_name(&self, host: &str) -> Option<ServerName<'static>> {
        // As a rule it is for the rule's own, which needs no looking into.
        let is_own = self.host.as_ref().is_some_and(|own| own.to_str() == host);
        if !is_own && self.asks_for(host) {
            return ServerName::try_from(host.trim_matches(['[', ']'])).ok().map(|name| name.to_owned());
        }
        self.server_name.as_ref().or(self.host.as_ref()).cloned()
    }

    /// Whether a request to `host` is sent to whoever has shown to be that, rather than to whom all others are sent.
    pub fn asks_for(&self, host: &str) -> bool {
        let is_address = || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        self.follows_requests() && (self.host.is_none() || !is_address())
    }

    /// Whether servers are asked for the host of each request.
    pub fn follows_requests(&self) -> bool {
        self.server_name.is_none()
    }

    /// What to report of an origin that was verified and has none of the pinned keys, where pins are only to be reported.
    pub fn unenforced_pins(&self, presented: Option<&[CertificateDer<'_>]>) -> Option<PinMismatch> {
        self.client.verifier.unenforced_pins(presented?, UnixTime::now())
    }

    /// Whether it is made by the very same client.
    pub fn is_same_client(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client)
    }
}

#[derive(Debug)]
struct Client {
    config: Arc<ClientConfig>,
    verifier: Arc<PeerVerifier>,
    offer: Offer,
    material: Material,
    /// The time of the certificate that origins are shown.
    shown: Option<Validity>,
}

/// All that clients differ in, but for the contents of files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Recipe {
    names: Names,
    roots: Option<Pem>,
    crl: Option<Pem>,
    client: Option<(Pem, Pem)>,
    requirements: Requirements,
}

/// What certificates must be valid for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Names {
    /// The name that was asked for.
    Asked,
    /// One of these.
    Listed(Vec<ServerName<'static>>),
    /// Nothing is verified.
    Any,
}

/// The clients of one policy.
#[derive(Debug, Default)]
pub struct Clients {
    clients: HashMap<Recipe, Arc<Client>>,
    store: Store,
}

impl Clients {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// When certificates that origins are shown, and revocation lists that they are looked up in, are over, by what they are called.
    pub fn times(&self) -> BTreeMap<(Dated, String), Validity> {
        let shown = self.clients.iter().filter_map(|(recipe, client)| {
            let (certificate, _) = recipe.client.as_ref()?;
            Some(((Dated::Certificate, certificate.to_string()), client.shown?))
        });
        let lists = self.clients.values().filter_map(|client| client.verifier.expected.as_ref()?.crls.as_ref());
        let lists = lists.flat_map(|crls| {
            let dated = |authority: &String| (Dated::RevocationList(authority.clone()), crls.place.clone());
            crls.times.iter().map(move |(authority, validity)| (dated(authority), *validity))
        });
        first_to_end(shown.chain(lists))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

/// Makes the clients of a policy; those of the one before are used again, with the sessions that they remember, where
/// settings and files are the same. They stay in use where the settings are, and the files are bad by now or cannot be read: what is
/// wrong with one rule's keeps no other from having its own renewed.
pub struct Workshop<'a> {
    before: &'a Clients,
    clients: Clients,
    kept: Vec<TlsError>,
    progress: Progress,
}

impl<'a> Workshop<'a> {
    /// A workshop that starts from the clients of the policy before.
    pub fn new(before: &'a Clients) -> Self {
        Self::telling(before, Progress::default())
    }

    /// The same, which tells what it reads.
    pub fn telling(before: &'a Clients, progress: Progress) -> Self {
        Self { before, clients: Clients::default(), kept: Vec::new(), progress }
    }

    /// What was made, and why some of it is as it was before.
    pub fn finish(self) -> (Clients, Vec<TlsError>) {
        (self.clients, self.kept)
    }

    /// What originates TLS for `host` by its settings.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be: no certificate in it, or a key that does not match. And there is none with
    /// these settings before.
    pub fn originator(
        &mut self,
        host: &HostPattern,
        settings: &TlsSettings,
        location: &Location,
    ) -> Result<Originator, TlsError> {
        let server_name = settings.server_name(host).map(HostName::to_server_name);
        let client = self.client(Recipe::of(settings, server_name.as_ref()), settings, location)?;
        let host = match host {
            HostPattern::Exact(host) => Some(host.to_server_name()),
            HostPattern::Wildcard(_) => None,
        };
        Ok(Originator { client, server_name, host })
    }

    fn client(&mut self, recipe: Recipe, settings: &TlsSettings, location: &Location) -> Result<Arc<Client>, TlsError> {
        if let Some(made) = self.clients.clients.get(&recipe) {
            return Ok(made.clone());
        }
        let before = self.before.clients.get(&recipe);
        let client = match (self.renewed(&recipe, before, settings, location), before) {
            (Ok(client), _) => client,
            (Err(error), Some(before)) => {
                self.kept.push(error);
                before.clone()
            }
            (Err(error), None) => return Err(error),
        };
        self.clients.clients.insert(recipe, client.clone());
        Ok(client)
    }

    /// The client by what is in the files now; the one before if that is what it was.
    fn renewed(
        &mut self,
        recipe: &Recipe,
        before: Option<&Arc<Client>>,
        settings: &TlsSettings,
        location: &Location,
    ) -> Result<Arc<Client>, TlsError> {
        let verifies = recipe.names != Names::Any;
        let Self { before: Clients { store: old, .. }, clients, kept, progress } = self;
        let reader = Reader { store: &mut clients.store, before: old, kept, progress };
        let material = Material::read(settings, verifies, reader)?;
        match before.filter(|before| before.material.is(&material)) {
            Some(same) => Ok(same.clone()),
            None => Ok(Arc::new(Client::build(recipe, settings, material, location)?)),
        }
    }
}

/// Of what has the same name that which ends first: where another file is bad, a client has that from before which others have anew.
fn first_to_end<N: Ord>(times: impl Iterator<Item = (N, Validity)>) -> BTreeMap<N, Validity> {
    let mut ends: BTreeMap<_, Validity> = BTreeMap::new();
    for (name, validity) in times {
        let first = ends.entry(name).or_insert(validity);
        if validity.not_after < first.not_after {
            *first = validity;
        }
    }
    ends
}

impl Recipe {
    fn of(settings: &TlsSettings, server_name: Option<&ServerName<'static>>) -> Self {
        let names = match &settings.verify {
            Verify::Skip => Names::Any,
            Verify::Host => Names::Asked,
            // So that all rules that say nothing special share one client.
            Verify::Names(names) if server_name.is_some_and(|asked| names == std::slice::from_ref(asked)) => {
                Names::Asked
            }
            Verify::Names(names) => Names::Listed(names.clone()),
        };
        Self {
            names,
            roots: match &settings.roots {
                Roots::System => None,
                Roots::File(file) => Some(file.value.clone()),
            },
            crl: settings.crl.as_ref().map(|file| file.value.clone()),
            client: settings.client.as_ref().map(|client| (client.certificate.value.clone(), client.key.value.clone())),
            requirements: settings.requirements.clone(),
        }
    }

    /// Whether it is that of `mode: SIMPLE` and nothing else.
    fn is_plain(&self) -> bool {
        let Self { names, roots: None, crl: None, client: None, requirements } = self else { return false };
        *names == Names::Asked && *requirements == Requirements::default()
    }
}

impl Client {
    fn build(
        recipe: &Recipe,
        settings: &TlsSettings,
        material: Material,
        location: &Location,
    ) -> Result<Self, TlsError> {
        let Requirements { min_version, post_quantum, .. } = recipe.requirements;
        let provider = Arc::new(provider(post_quantum));
        let verifier = Arc::new(PeerVerifier {
            algorithms: provider.signature_verification_algorithms,
            expected: expected(recipe, settings, &material)?,
        });
        // There is no such key exchange in TLS 1.2.
        let versions: &[&SupportedProtocolVersion] =
            if min_version == TlsVersion::V13 || post_quantum { &[&TLS13] } else { &[&TLS13, &TLS12] };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| TlsError::Settings { location: location.clone(), problem: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut shown = None;
        let mut config = match (&settings.client, &material.client) {
            (Some(identity), Some((certificate, key))) => {
                let chain = parse_chain(&identity.certificate, certificate)?;
                let key = parse_key(&identity.key, key)?;
                shown = Validity::of(&chain);
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let certificate = &identity.certificate.value;
                    content(&identity.key, format!("does not go with {certificate}: {error}"))
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        config.resumption = match &verifier.expected {
            // A list could be out of date by now, and nothing says so of a session.
            Some(Expected { crls: Some(_), .. }) => Resumption::disabled(),
            Some(Expected { sessions, .. }) => Resumption::store(sessions.clone()),
            None => Resumption::store(Arc::new(ClientSessionMemoryCache::new(FEW_SERVERS * OF_A_SERVER))),
        };
        let offer = Offer { min_version, post_quantum, client_certificate: settings.client.is_some() };
        Ok(Self { config: Arc::new(config), verifier, offer, material, shown })
    }
}

fn provider(post_quantum: bool) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if post_quantum {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::SECP256R1MLKEM768];
    }
    provider
}

/// What origins are to be verified by; None if by nothing.
fn expected(recipe: &Recipe, settings: &TlsSettings, material: &Material) -> Result<Option<Expected>, TlsError> {
    let names = match &recipe.names {
        Names::Any => return Ok(None),
        Names::Asked => None,
        Names::Listed(names) => Some(names.clone()),
    };
    let trust = match (&settings.roots, &material.roots, &material.system_roots) {
        (Roots::File(file), Some(pem), _) => {
            Trust { roots: Arc::new(parse_roots(file, pem)?), place: format!("among those in {}", file.value) }
        }
        (Roots::System, _, Some(roots)) => Trust { roots: roots.clone(), place: "among this machine's".to_owned() },
        // They are read for all who verify; if they were not, then nobody is trusted.
        _ => return Err(RootsError::Missing.into()),
    };
    let crls = match (&settings.crl, &material.crl) {
        (Some(file), Some(pem)) => Some(parse_crls(file, pem)?),
        (Some(file), None) => return Err(content(file, "it was not read".to_owned())),
        (None, _) => None,
    };
    let Requirements { pins, pins_mode, .. } = &recipe.requirements;
    let enforces_pins = *pins_mode == PinsMode::Enforce;
    let sessions = Arc::new(Sessions::new(if recipe.is_plain() { SERVERS } else { FEW_SERVERS }));
    Ok(Some(Expected { trust, names, crls, pins: pins.clone(), enforces_pins, sessions }))
}

#[cfg(test)]
mod tests;
