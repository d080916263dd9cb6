//! What is accepted, and the table of all that is not.

use std::{fs, path::Path, process};

use super::{Progress, Source, parse};

mod refused;

const SEED_ACCESS: &str = include_str!("tests/seed-access.yaml");
const SEED_ORIGINATION: &str = include_str!("tests/seed-origination.yaml");

/// The errors of a file, one per line; empty if there are none.
fn errors(text: &str) -> String {
    parse(text, Path::new("rules.yaml")).err().map(|errors| errors.to_string()).unwrap_or_default()
}

#[test]
fn accepted() {
    let indented = SEED_ORIGINATION.replace("\n    - edition.cnn.com", "\n        - edition.cnn.com");
    assert_ne!(indented, SEED_ORIGINATION);
    let crlf = SEED_ORIGINATION.replace('\n', "\r\n");
    let with_empty = format!("\u{feff}%YAML 1.2\n---\n# nothing\n---\n---\n{SEED_ORIGINATION}\n---\n");
    for (text, documents) in [
        ("", 0),
        ("# a comment\n---\n", 0),
        (SEED_ACCESS, 1),
        (SEED_ORIGINATION, 2),
        (&indented, 2),
        (&crlf, 2),
        (&with_empty, 2),
        (KUBECTL_GET, 2),
        (JSON, 1),
        (SPEC_BEFORE_KIND, 1),
        (ANCHORS, 1),
    ] {
        match parse(text, Path::new("rules.yaml")) {
            Ok(found) => assert_eq!(found.len(), documents, "{text}"),
            Err(errors) => panic!("{errors}\n{text}"),
        }
    }
}

/// As `kubectl get serviceentry,destinationrule -o yaml` prints it.
const KUBECTL_GET: &str = r#"apiVersion: v1
items:
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"networking.istio.io/v1alpha3","kind":"ServiceEntry"}
    creationTimestamp: "2024-03-01T10:00:00Z"
    generation: 1
    labels:
      app: news
    managedFields:
    - apiVersion: networking.istio.io/v1alpha3
      fieldsType: FieldsV1
      fieldsV1:
        f:spec:
          .: {}
          f:hosts: {}
      manager: kubectl
      operation: Update
    name: edition-cnn-com
    namespace: default
    resourceVersion: "4711"
    uid: 3c2f5a2e-6c0b-4d57-9d2a-0c8d7f8f3a11
  spec:
    hosts:
    - edition.cnn.com
    location: MESH_EXTERNAL
    ports:
    - name: http-port
      number: 80
      protocol: HTTP
      targetPort: 443
    resolution: DNS
  status:
    addresses:
    - host: edition.cnn.com
      value: 240.240.0.1
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata:
    name: edition-cnn-com
    finalizers: []
    ownerReferences: []
    selfLink: /apis/networking.istio.io/v1
  spec:
    host: edition.cnn.com
    trafficPolicy:
      tls:
        mode: SIMPLE
        insecureSkipVerify: false
kind: List
metadata:
  resourceVersion: ""
"#;

const JSON: &str = r#"{
  "apiVersion": "networking.istio.io/v1beta1",
  "kind": "DestinationRule",
  "metadata": {"name": "a", "creationTimestamp": null},
  "spec": {
    "host": "a.example",
    "trafficPolicy": {"portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]}
  },
  "status": {}
}
"#;

const SPEC_BEFORE_KIND: &str = "
spec: {hosts: ['*.example.com'], ports: [{number: 443, name: tls, protocol: tls}], addresses: [203.0.113.0/24]}
metadata: {name: wild}
kind: ServiceEntry
apiVersion: networking.istio.io/v1
";

const ANCHORS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: &host a.example}
spec: {hosts: [*host], ports: [{number: 80, name: http}]}
";

#[test]
fn directories() {
    let directory = std::env::temp_dir().join(format!("egress-config-{}", process::id()));
    let data = directory.join("..data");
    fs::create_dir_all(&data).expect("a directory");
    let refused = load(&directory);
    assert!(refused.contains("has no file whose name ends in .yaml, .yml or .json"), "{refused}");
    fs::write(directory.join("none.yaml"), "# There are to be none.\n").expect("a file");
    assert_eq!(load(&directory), "0 documents");
    fs::remove_file(directory.join("none.yaml")).expect("the file");

    // As the kubelet mounts a ConfigMap.
    fs::write(data.join("seed.yaml"), SEED_ORIGINATION).expect("a file");
    std::os::unix::fs::symlink("..data/seed.yaml", directory.join("seed.yaml")).expect("a link");
    fs::write(directory.join(".hidden.yaml"), "hidden").expect("a file");
    fs::write(directory.join("README.md"), "# not YAML: at all").expect("a file");
    fs::create_dir(directory.join("nested.yaml")).expect("a directory");
    assert_eq!(load(&directory), "2 documents");

    let link = directory.join("a.yml");
    std::os::unix::fs::symlink("nowhere", &link).expect("a link");
    fs::write(directory.join("b.json"), "[]").expect("a file");
    let expected = format!(
        "{}: cannot read the file: No such file or directory (os error 2)\n{}:1: expected a map, found a list",
        link.display(),
        directory.join("b.json").display(),
    );
    assert_eq!(load(&directory), expected);

    fs::remove_dir_all(&directory).expect("the directory is ours");
    let expected = format!("{}: cannot read the file: No such file or directory (os error 2)", directory.display());
    assert_eq!(load(&directory), expected);
}

fn load(path: &Path) -> String {
    match super::load(&[Source::Path(path.to_owned())], &Progress::default()) {
        Ok(documents) => format!("{} documents", documents.len()),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn errors_of_all_sources_are_sorted() {
    let text = "kind: Nothing\n---\n{\n---\nkind: ServiceEntry\napiVersion: networking.istio.io/v2\n";
    let found = errors(text);
    let lines: Vec<&str> = found.lines().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(lines, ["1", "3", "6"], "{found}");
}
