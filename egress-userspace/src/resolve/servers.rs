//! The node's name servers, asked one after the other, as glibc asks them: what the first one says counts, and be it that there
//! is nothing. Another one may know other names.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use hickory_resolver::{
    Resolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RecordType},
    },
};
use tokio::join;

use super::{files::Settings, marked::MarkedProvider, names::AT_ONCE, search::Search, silence::Silence};

/// The name servers of resolv.conf.
pub(super) struct Servers {
    each: Vec<Server>,
    /// How often each is asked at most.
    attempts: usize,
    /// Whether they are asked first in turn.
    rotate: bool,
    turn: AtomicUsize,
    search: Search,
}

struct Server {
    /// For it alone: one for all takes the first answer of those that it asks together, and where it asks one at a time, gives up
    /// with the first that is silent.
    resolver: Resolver<MarkedProvider>,
    silence: Silence,
}

/// Of IPv4 and IPv6.
type Answers = [Result<Lookup, NetError>; 2];

impl Servers {
    /// # Errors
    /// There is no resolver that does what the settings say.
    pub(super) fn new(settings: Settings, provider: &MarkedProvider) -> Result<Self, NetError> {
        let Settings { config, mut options, rotate } = settings;
        let attempts = options.attempts.max(1);
        options.use_hosts_file = ResolveHosts::Never;
        // Names are looked up when their answers have run out, and what is remembered does not tell whether a server answers.
        options.cache_size = 0;
        // How often it asks again.
        options.attempts = 0;
        // On a connection there is room for all queries that are under way: one too many would be given up at once.
        options.max_active_requests = 2 * AT_ONCE;
        let alone = |server: &NameServerConfig| {
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server.clone()]);
            let builder = Resolver::builder_with_config(config, provider.clone()).with_options(options.clone());
            Ok::<_, NetError>(Server { resolver: builder.build()?, silence: Silence::default() })
        };
        let each = config.name_servers().iter().map(alone).collect::<Result<_, _>>()?;
        let search = Search::new(&config, options.ndots);
        Ok(Self { each, attempts, rotate, turn: AtomicUsize::new(0), search })
    }

    /// The IPv4 and the IPv6 addresses of the first name that has any, of those that `name` may stand for.
    ///
    /// # Errors
    /// For a family by itself: the servers say that there is nothing; or none answers, and why. A name for which none answers may
    /// be the one, whatever the servers say of those after it.
    pub(super) async fn look_up(&self, name: &Name) -> Answers {
        let first = if self.rotate { self.turn.fetch_add(1, Ordering::Relaxed) % self.each.len().max(1) } else { 0 };
        let mut failures = [None, None];
        for name in self.search.candidates(name) {
            let answers: Answers =
                join!(self.ask(&name, RecordType::A, first), self.ask(&name, RecordType::AAAA, first)).into();
            if answers.iter().any(Result::is_ok) {
                return answers;
            }
            for (failure, error) in failures.iter_mut().zip(answers.into_iter().filter_map(Result::err)) {
                if failure.as_ref().is_none_or(is_denial) {
                    *failure = Some(error);
                }
            }
            // Nobody will say more of another name.
            if failures.iter().flatten().any(|failure| !is_said(failure)) {
                break;
            }
        }
        failures.map(|failure| Err(failure.unwrap_or(NetError::NoConnections)))
    }

    /// Asks one after the other until one answers, and be it that there is nothing.
    ///
    /// # Errors
    /// It says that there is nothing; or none answers, and what one says of that, if any says something.
    async fn ask(&self, name: &Name, kind: RecordType, first: usize) -> Result<Lookup, NetError> {
        let order = self.order(first);
        let mut failure = None;
        for asked in (0..order.len()).cycle().take(order.len() * self.attempts) {
            let (rank, server) = order[asked];
            match server.ask(name, kind).await {
                Ok(answer) => return Ok(answer),
                Err(denial) if is_denial(&denial) => {
                    let passed_over = order[asked + 1..].iter().filter(|(other, _)| *other < rank);
                    return confirm(denial, name, kind, passed_over.map(|(_, server)| *server)).await;
                }
                Err(error) => {
                    if !failure.as_ref().is_some_and(is_said) {
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.unwrap_or(NetError::NoConnections))
    }

    /// All servers, each with its place, those last that are silent.
    fn order(&self, first: usize) -> Vec<(usize, &Server)> {
        let now = Instant::now();
        let in_turn = self.each.iter().cycle().skip(first).take(self.each.len()).enumerate();
        let (silent, others): (Vec<_>, Vec<_>) = in_turn.partition(|(_, server)| server.silence.puts_last(now));
        [others, silent].concat()
    }
}

impl Server {
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, NetError> {
        let sent = Instant::now();
        let answer = self.resolver.lookup(name.clone(), kind).await;
        match &answer {
            Err(NetError::Timeout) => self.silence.unanswered(sent, Instant::now()),
            Ok(_) | Err(NetError::Dns(_)) => self.silence.answered(Instant::now()),
            // It says nothing, but that takes no time.
            Err(_) => {}
        }
        answer
    }
}

/// What servers that come first, but have been silent, say of a name that another one knows nothing of. That it does not exist
/// must not be believed as long as one of them may know it.
async fn confirm<'a>(
    denial: NetError,
    name: &Name,
    kind: RecordType,
    passed_over: impl Iterator<Item = &'a Server>,
) -> Result<Lookup, NetError> {
    let NetError::Dns(DnsError::NoRecordsFound(nothing)) = &denial else { return Err(denial) };
    if nothing.response_code == ResponseCode::NXDomain {
        for server in passed_over {
            match server.ask(name, kind).await {
                Err(error) if !is_denial(&error) => {}
                answer => return answer,
            }
        }
    }
    Err(denial)
}

/// Whether a server says that there is nothing.
fn is_denial(error: &NetError) -> bool {
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(_)))
}

/// Whether it is what a server says, be it that it cannot answer, rather than that none says anything.
fn is_said(error: &NetError) -> bool {
    matches!(error, NetError::Dns(_))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{Ipv4Addr, Ipv6Addr, SocketAddr},
        sync::{Arc, Mutex},
        time::Duration,
    };

    use futures_util::{StreamExt as _, future::join_all, stream};
    use hickory_resolver::{
        config::ConnectionConfig,
        proto::{
            op::{Message, MessageType},
            rr::{RData, Record},
        },
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream, UdpSocket},
        sync::{Barrier, mpsc},
    };

    use super::{super::marked::Marker, *};

    const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

    /// A name server on loopback.
    struct Stub {
        at: SocketAddr,
        /// The names that it was asked for.
        asked: Arc<Mutex<BTreeSet<String>>>,
    }

    impl Stub {
        /// Says of a name what `code` does, and that it has addresses if that is no error. Of others it says nothing.
        async fn start(code: impl Fn(&str) -> Option<ResponseCode> + Send + 'static) -> Self {
            let socket = UdpSocket::bind(ANYWHERE).await.expect("a socket");
            let at = socket.local_addr().expect("its address");
            let asked = Arc::new(Mutex::new(BTreeSet::new()));
            let seen = Arc::clone(&asked);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok((count, client)) = socket.recv_from(&mut buffer).await {
                    let query = Message::from_vec(&buffer[..count]).expect("a query");
                    let name = query.queries[0].name().to_ascii();
                    seen.lock().expect("nobody panics with it").insert(name.clone());
                    if let Some(code) = code(&name) {
                        socket.send_to(&reply(query, code), client).await.expect("an answer");
                    }
                }
            });
            Self { at, asked }
        }

        /// The names that it was asked for since the last time.
        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut *self.asked.lock().expect("nobody panics with it")).into_iter().collect()
        }
    }

    fn reply(mut query: Message, code: ResponseCode) -> Vec<u8> {
        query.metadata.message_type = MessageType::Response;
        query.metadata.response_code = code;
        if code == ResponseCode::NoError {
            let data = match query.queries[0].query_type() {
                RecordType::A => RData::A(Ipv4Addr::LOCALHOST.into()),
                _ => RData::AAAA(Ipv6Addr::LOCALHOST.into()),
            };
            let record = Record::from_rdata(query.queries[0].name().clone(), 60, data);
            query.add_answer(record);
        }
        query.to_vec().expect("a message")
    }

    fn servers(addresses: &[SocketAddr], connection: fn() -> ConnectionConfig, adjust: fn(&mut Settings)) -> Servers {
        let server = |at: &SocketAddr| {
            let mut connection = connection();
            connection.port = at.port();
            NameServerConfig::new(at.ip(), true, vec![connection])
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), addresses.iter().map(server).collect());
        let mut settings = Settings { config, ..Settings::default() };
        settings.options.timeout = Duration::from_millis(500);
        settings.options.attempts = 1;
        adjust(&mut settings);
        Servers::new(settings, &MarkedProvider::new(Marker::default())).expect("resolvers")
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn has_addresses(_: &str) -> Option<ResponseCode> {
        Some(ResponseCode::NoError)
    }

    #[tokio::test]
    async fn servers_in_turn_have_a_look_up_each() {
        let [one, two] = [Stub::start(has_addresses).await, Stub::start(has_addresses).await];
        let servers = servers(&[one.at, two.at], ConnectionConfig::udp, |settings| settings.rotate = true);
        for text in ["a.example.", "b.example.", "c.example.", "d.example."] {
            assert!(servers.look_up(&name(text)).await.iter().all(Result::is_ok), "{text}");
        }
        assert_eq!(one.asked(), ["a.example.", "c.example."]);
        assert_eq!(two.asked(), ["b.example.", "d.example."]);
    }

    #[tokio::test]
    async fn a_name_for_which_no_server_answers_is_not_denied_by_what_the_next_one_is() {
        let failing = |name: &str| {
            Some(if name == "proxy.corp.example." { ResponseCode::ServFail } else { ResponseCode::NXDomain })
        };
        let knowing = |name: &str| {
            Some(if name == "proxy.corp.example." { ResponseCode::NoError } else { ResponseCode::NXDomain })
        };
        let in_domain = |settings: &mut Settings| settings.config.add_search(name("corp.example"));
        let one = Stub::start(failing).await;
        let alone = servers(&[one.at], ConnectionConfig::udp, in_domain);
        let answers = alone.look_up(&name("proxy")).await;
        assert!(answers.iter().flat_map(|answer| answer.as_ref().err()).all(|error| !is_denial(error)), "{answers:?}");
        assert_eq!(one.asked(), ["proxy.", "proxy.corp.example."]);

        let two = Stub::start(knowing).await;
        let both = servers(&[one.at, two.at], ConnectionConfig::udp, in_domain);
        assert!(both.look_up(&name("proxy")).await.iter().all(Result::is_ok));
        assert_eq!([one.asked(), two.asked()], [["proxy.corp.example."], ["proxy.corp.example."]]);
    }

    #[tokio::test]
    async fn a_silent_server_costs_time_only_at_first() {
        let [one, two] = [Stub::start(|_| None).await, Stub::start(has_addresses).await];
        let servers = servers(&[one.at, two.at], ConnectionConfig::udp, |_| {});
        let names: Vec<_> = (0..100).map(|number| name(&format!("host{number}.example."))).collect();
        let mut answers = stream::iter(names.iter().map(|name| servers.look_up(name))).buffer_unordered(AT_ONCE);
        while let Some(answer) = answers.next().await {
            assert!(answer.iter().all(Result::is_ok), "{answer:?}");
        }
        assert_eq!([one.asked().len(), two.asked().len()], [AT_ONCE, names.len()]);
    }

    #[tokio::test]
    async fn what_only_the_first_server_knows_is_found_though_it_was_silent_for_another_name() {
        let one = Stub::start(|name| (name != "dead.example.").then_some(ResponseCode::NoError)).await;
        let two = Stub::start(|_| Some(ResponseCode::NXDomain)).await;
        let servers = servers(&[one.at, two.at], ConnectionConfig::udp, |_| {});
        assert!(
            servers
                .look_up(&name("dead.example."))
                .await
                .iter()
                .flat_map(|answer| answer.as_ref().err())
                .all(is_denial)
        );
        assert!(servers.look_up(&name("corp.example.")).await.iter().all(Result::is_ok));
        two.asked();
        assert!(servers.look_up(&name("other.example.")).await.iter().all(Result::is_ok));
        assert!(two.asked().is_empty(), "the first one has answered since");
    }

    /// Answers what comes over a connection, but nothing, except of `warm.example`, before `gathered` is complete.
    async fn answer(connection: TcpStream, gathered: Arc<Barrier>) {
        let (mut from, mut to) = connection.into_split();
        let (replies, mut ready) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(reply) = ready.recv().await {
                to.write_u16(reply.len() as u16).await.expect("a length");
                to.write_all(&reply).await.expect("a reply");
            }
        });
        while let Ok(length) = from.read_u16().await {
            let mut query = vec![0; length.into()];
            from.read_exact(&mut query).await.expect("a query");
            let query = Message::from_vec(&query).expect("a query");
            let (replies, gathered) = (replies.clone(), Arc::clone(&gathered));
            tokio::spawn(async move {
                if query.queries[0].name() != &name("warm.example.") {
                    gathered.wait().await;
                }
                replies.send(reply(query, ResponseCode::NoError)).expect("a writer");
            });
        }
    }

    #[tokio::test]
    async fn a_connection_has_room_for_all_look_ups_that_are_under_way() {
        let listener = TcpListener::bind(ANYWHERE).await.expect("a listener");
        let at = listener.local_addr().expect("its address");
        let gathered = Arc::new(Barrier::new(2 * AT_ONCE));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(answer(connection, Arc::clone(&gathered)));
            }
        });
        let servers = servers(&[at], ConnectionConfig::tcp, |settings| settings.options.timeout *= 20);
        // The others share the connection that this makes.
        assert!(servers.look_up(&name("warm.example.")).await.iter().all(Result::is_ok));
        let names: Vec<_> = (0..AT_ONCE).map(|number| name(&format!("host{number}.example."))).collect();
        for answers in join_all(names.iter().map(|name| servers.look_up(name))).await {
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        }
    }
}
