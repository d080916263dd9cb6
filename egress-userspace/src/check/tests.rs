//! What the author of a configuration is told.

use std::{fmt::Write as _, fs, path::PathBuf};

use super::{Finding, Report, check_and_probe};
use crate::config::{Code, Progress, Source};

/// Documents, each followed by what is said of them. `UPDATE_EXPECT=1 cargo test check::` writes what is said now.
const FILES: [&str; 2] = ["src/check/tests/broken.txt", "src/check/tests/traps.txt"];

const ARROW: &str = "\n==> ";

fn check(source: impl Into<PathBuf>) -> Report {
    super::check(&[Source::Path(source.into())], &Progress::default())
}

/// The answer for a text.
fn said(text: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rules.yaml");
    fs::write(&file, text).expect("a file");
    let mut report = check(file);
    let is_error = |finding: &&Finding| finding.severity == "error";
    report.errors = report.diagnostics.iter().filter(is_error).count();
    report.to_string().replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn broken_documents_are_explained() {
    for path in FILES {
        let text = fs::read_to_string(path).expect("the file of cases");
        let (preface, cases) = text.split_once("\n## ").expect("a case");
        let mut now = preface.to_owned();
        for case in cases.split("\n## ") {
            let (title, rest) = case.split_once('\n').expect("a title");
            let (document, _) = rest.split_once(ARROW).unwrap_or((rest, ""));
            let said = said(document).replace('\n', "\n    ");
            write!(now, "\n## {title}\n{}{ARROW}{said}\n", document.trim_end()).expect("a String takes all");
        }
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(path, &now).expect("the file of cases");
            continue;
        }
        for (now, expected) in now.split("\n## ").zip(text.split("\n## ")) {
            assert_eq!(now.trim_end(), expected.trim_end(), "in {path}");
        }
        assert_eq!(now.trim_end(), text.trim_end(), "in {path}");
    }
}

/// Whoever breaks a document learns of every kind of mistake that there is.
#[test]
fn every_code_has_a_case() {
    let cases: String = FILES.map(|path| fs::read_to_string(path).expect("the file of cases")).concat();
    let count = cases.matches("\n## ").count();
    assert!(count >= 40, "only {count} cases");
    // These need a file that cannot be read, a machine without roots, or an origin.
    let elsewhere = [
        Code::Unreadable,
        Code::NoRoots,
        Code::Questionable,
        Code::ExpiresSoon,
        Code::PartlyUnreachable,
        Code::NoClientCertificate,
        Code::UnenforcedPins,
        Code::Unresolved,
        Code::Unreachable,
        Code::TlsFailed,
    ];
    let untold: Vec<_> = Code::ALL
        .iter()
        .filter(|code| !elsewhere.contains(code) && !cases.contains(&format!("[{} {}]", code.id(), code.name())))
        .collect();
    assert!(untold.is_empty(), "no case for {untold:?}");
}

#[test]
fn the_seed_is_explained() {
    let seed = |name: &str| check(format!("src/config/tests/{name}")).to_string();
    assert_eq!(
        seed("seed-access.yaml"),
        "there is no host with TLS origination: nothing would be intercepted\n0 rules, 0 errors, 0 warnings"
    );
    assert_eq!(
        seed("seed-origination.yaml"),
        "http://edition.cnn.com:80 -> TLS 1.2+ edition.cnn.com:443, OS roots, SNI edition.cnn.com\n\
         1 rule, 0 errors, 0 warnings"
    );
}

#[tokio::test]
async fn names_to_probe_are_not_judged_by_what_cannot_be_read() {
    let sources = [Source::Path("src/check/tests/nowhere.yaml".into())];
    let report = check_and_probe(&sources, &["www.a.com".parse().expect("a host name")], &Progress::default()).await;
    let codes: Vec<_> = report.diagnostics.iter().map(|finding| finding.code).collect();
    assert_eq!((codes.as_slice(), report.errors), (["EG0001"].as_slice(), 1));
}

#[test]
fn json_has_all_of_it() {
    let report = check("src/config/tests/seed-origination.yaml");
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["rules"][0]["host"], "edition.cnn.com");
    assert_eq!(json["rules"][0]["port"], 80);
    assert_eq!(json["rules"][0]["routes"][0]["when"], serde_json::Value::Null);
    assert_eq!(json["rules"][0]["routes"][0]["location"]["line"], 28);

    // What is left in clear is no rule.
    let directory = tempfile::tempdir().expect("a directory");
    let resources = |host: &str, resolution: &str, mode: &str| {
        format!(
            "kind: ServiceEntry\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: ['{host}'], ports: [{{number: 80, \
             name: a, protocol: HTTP}}], resolution: {resolution}}}\n---\nkind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: \
             {{name: x}}\nspec: {{host: '{host}', trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n---\n"
        )
    };
    let text = resources("*.a.com", "NONE", "SIMPLE") + &resources("b.a.com", "DNS", "DISABLE");
    fs::write(directory.path().join("rules.yaml"), text).expect("a file");
    let report = check(directory.path());
    let json = serde_json::to_value(&report).expect("JSON");
    let hosts = |list: &str| {
        let list = json[list].as_array().into_iter().flatten();
        list.map(|one| (one["host"].clone(), one["location"]["line"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(hosts("rules"), [("*.a.com".into(), 9.into())]);
    assert_eq!(hosts("exceptions"), [("b.a.com".into(), 19.into())]);
    assert!(report.to_string().ends_with("\n1 rule, 1 exception, 0 errors, 1 warning"), "{report}");

    let report = check("src/check/tests/nowhere.yaml");
    let finding = &serde_json::to_value(&report).expect("JSON")["diagnostics"][0];
    assert_eq!(finding["code"], "EG0001");
    assert_eq!(finding["name"], "unreadable");
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["location"]["file"], "src/check/tests/nowhere.yaml");
    assert_eq!(finding["location"]["line"], serde_json::Value::Null);
    assert_eq!((report.errors, report.warnings), (1, 0));
}
