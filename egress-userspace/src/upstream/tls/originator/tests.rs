use std::path::Path;

use super::*;
use crate::config::{Located, annotations::Pin};

const ROOT: &[u8] = include_bytes!("../tests/root.pem");

fn rule(host: &str, roots: &Path) -> (HostPattern, TlsSettings) {
    let host: HostName = host.parse().expect("a host name");
    let location = Location::whole(Path::new("rules.yaml"));
    let settings = TlsSettings {
        sni: None,
        verify: Verify::Names(vec![host.to_server_name()]),
        roots: Roots::File(Located::new(Pem::File(roots.to_owned()), location)),
        crl: None,
        client: None,
        requirements: Requirements::default(),
    };
    (HostPattern::Exact(host), settings)
}

fn make(workshop: &mut Workshop<'_>, (host, settings): &(HostPattern, TlsSettings)) -> Originator {
    workshop.originator(host, settings, &Location::whole(Path::new("rules.yaml"))).expect("nothing is wrong with it")
}

#[test]
fn rules_that_want_the_same_share_a_client_and_changed_files_make_a_new_one() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let roots = home.path().join("ca.pem");
    std::fs::write(&roots, ROOT).expect("a file");
    let (one, two) = (rule("a.example", &roots), rule("b.example", &roots));
    let mut other_name = rule("c.example", &roots);
    other_name.1.sni = Some("front.example".parse().expect("a host name"));
    let mut pinned = rule("d.example", &roots);
    pinned.1.requirements.pins.push(Pin([0; 32]));

    let nothing = Clients::default();
    let mut workshop = Workshop::new(&nothing);
    let first = make(&mut workshop, &one);
    assert!(first.is_same_client(&make(&mut workshop, &two)));
    assert_eq!(first.server_name("b.example"), ServerName::try_from("a.example").ok());
    assert!(!first.is_same_client(&make(&mut workshop, &other_name)), "it is not verified by the name asked for");
    assert!(!first.is_same_client(&make(&mut workshop, &pinned)));
    let mut of_requests = rule("e.example", &roots);
    of_requests.1.verify = Verify::Host;
    let of_requests = make(&mut workshop, &of_requests);
    for (host, expected) in [("b.example", "b.example"), ("192.0.2.7", "e.example"), ("[2001:db8::7]", "e.example")] {
        assert_eq!(of_requests.server_name(host), ServerName::try_from(expected).ok());
    }
    // It is nobody's name, and not asked for as somebody else's.
    assert_eq!(of_requests.server_name("foo-.example"), None);
    let (clients, _) = workshop.finish();
    assert_eq!(clients.len(), 3);

    std::fs::write(&roots, ROOT).expect("a file");
    let mut workshop = Workshop::new(&clients);
    assert!(first.is_same_client(&make(&mut workshop, &two)), "the file has not changed");
    let (clients, _) = workshop.finish();
    std::fs::write(&roots, [ROOT, b"\n"].concat()).expect("a file");
    assert!(!first.is_same_client(&make(&mut Workshop::new(&clients), &one)), "the file has changed");
}

#[test]
fn a_file_that_is_bad_by_now_leaves_its_rules_as_they_were_and_others_alone() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let files = ["a.pem", "b.pem"].map(|name| home.path().join(name));
    files.iter().for_each(|file| std::fs::write(file, ROOT).expect("a file"));
    let rules = ["a.example", "b.example"].into_iter().zip(&files).map(|(host, file)| rule(host, file));
    let [a, b] = rules.collect::<Vec<_>>().try_into().expect("two rules");
    let nothing = Clients::default();
    let mut workshop = Workshop::new(&nothing);
    let before = [make(&mut workshop, &a), make(&mut workshop, &b)];
    let (mut clients, kept) = workshop.finish();
    assert!(kept.is_empty());
    std::fs::write(&files[1], [ROOT, b"\n"].concat()).expect("a file");
    for content in [Some("no PEM"), None, Some("no PEM")] {
        match content {
            Some(content) => std::fs::write(&files[0], content).expect("a file"),
            None => std::fs::remove_file(&files[0]).expect("a file"),
        }
        let mut workshop = Workshop::new(&clients);
        assert!(before[0].is_same_client(&make(&mut workshop, &a)), "{content:?}");
        assert!(!before[1].is_same_client(&make(&mut workshop, &b)), "{content:?}");
        let (now, kept) = workshop.finish();
        assert_eq!(kept.len(), 1, "{content:?}: {kept:?}");
        clients = now;
    }
    std::fs::write(&files[0], ROOT).expect("a file");
    assert!(before[0].is_same_client(&make(&mut Workshop::new(&clients), &a)), "it is as it was before");
    std::fs::write(&files[0], [ROOT, b"\n"].concat()).expect("a file");
    assert!(!before[0].is_same_client(&make(&mut Workshop::new(&clients), &a)));
}

#[test]
fn a_certificate_that_is_in_use_from_before_and_anew_is_over_when_the_first_of_them_is() {
    let [old, new] = [1, 2].map(|not_after| Validity { not_before: 0, not_after });
    for order in [[old, new], [new, old]] {
        let shown = order.map(|validity| ("client.pem".to_owned(), validity));
        assert_eq!(first_to_end(shown.into_iter()), BTreeMap::from([("client.pem".to_owned(), old)]));
    }
}
