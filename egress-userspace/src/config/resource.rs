//! What every Kubernetes resource has around its `spec`: `apiVersion`, `kind`, `metadata`.

use std::collections::BTreeMap;

use super::{
    Code, Document, Errors, HostPattern, Located, Resource, annotations, backend_tls_policy,
    decode::{Decode, Fields, closest, wrong_type},
    destination_rule,
    node::{Entry, Node, Value},
    service_entry, store, virtual_service,
};

/// The kinds that egress knows, and the versions of each.
const KINDS: [(&str, Kind, &[&str]); 6] = [
    ("ServiceEntry", Kind::ServiceEntry, &ISTIO),
    ("DestinationRule", Kind::DestinationRule, &ISTIO),
    ("VirtualService", Kind::VirtualService, &ISTIO),
    (
        "BackendTLSPolicy",
        Kind::BackendTlsPolicy,
        &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3"],
    ),
    ("Secret", Kind::Secret, &["v1"]),
    ("ConfigMap", Kind::ConfigMap, &["v1"]),
];

const ISTIO: [&str; 3] = ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ServiceEntry,
    DestinationRule,
    VirtualService,
    BackendTlsPolicy,
    Secret,
    ConfigMap,
}

/// Kinds of Istio, by their groups, that stand beside ours in a user's files and are for sidecars and gateways.
const FOREIGN_KINDS: [(&str, &[&str]); 4] = [
    ("networking.istio.io", &["EnvoyFilter", "Gateway", "ProxyConfig", "Sidecar", WORKLOAD_ENTRY, "WorkloadGroup"]),
    ("security.istio.io", &["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["TrafficExtension", "WasmPlugin"]),
];

/// The one of them that others of ours can refer to.
const WORKLOAD_ENTRY: &str = "WorkloadEntry";

/// Kinds of the Gateway API, and Istio's own configuration.
const OTHER_KINDS: [&str; 12] = [
    "BackendLBPolicy",
    "BackendTrafficPolicy",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "IstioOperator",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
];

/// The API server's own notes, which `kubectl get -o yaml` prints.
const SERVER_METADATA: [&str; 9] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
];

/// The name of a resource and what is attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The name of the resource.
    pub name: String,
    /// The namespace, if one is given.
    pub namespace: Option<String>,
    /// Labels, which mean nothing to egress.
    pub labels: BTreeMap<String, String>,
    /// Annotations, of others and our own.
    pub annotations: BTreeMap<String, Located<String>>,
}

/// One of Istio's resources that are for sidecars and gateways: of no concern to egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it is.
    pub kind: Located<String>,
    /// Of a `WorkloadEntry` the labels by which a `ServiceEntry` can select it.
    pub workload: Option<BTreeMap<String, String>>,
    /// Of one that says more than egress knows about services of a cluster.
    pub unread: Option<Unread>,
}

/// What would be wrong with a resource if it was about hosts of a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// All hosts that it names.
    pub hosts: Vec<HostPattern>,
    /// What is wrong.
    pub errors: Errors,
}

/// Decodes a document and adds it to `documents`; the items of a `List`, as `kubectl get` prints one, one by one.
pub(super) fn decode(node: &Node, documents: &mut Vec<Document>, errors: &mut Errors) {
    let Some(mut fields) = Fields::of(node, "", errors) else { return };
    let api_version: Option<Located<String>> = fields.take("apiVersion", errors);
    let kind: Option<Located<String>> = fields.take("kind", errors);
    let (Some(api_version), Some(kind)) = (api_version, kind) else { return };

    if (api_version.as_str(), kind.as_str()) == ("v1", "List") {
        match fields.node("items") {
            Some(Node { value: Value::List(items), .. }) => {
                items.iter().for_each(|item| decode(item, documents, errors));
            }
            Some(other) => {
                wrong_type(other, "items", "a list", errors);
            }
            None => {}
        }
        return;
    }
    if is_foreign(&api_version, &kind) {
        documents.push(foreign(node.location.clone(), kind, &mut fields));
        return;
    }
    let known = KINDS.iter().find(|(name, _, versions)| {
        // What belongs to another group is another kind.
        *name == kind.as_str() && versions.iter().any(|version| group(version) == group(&api_version))
    });
    let Some((_, known, versions)) = known else {
        errors.push(kind.location.clone(), "", Code::UnknownKind.because(why_foreign(&api_version, &kind)));
        return;
    };
    if !versions.contains(&api_version.as_str()) {
        let message = format!("unknown version {:?} of {}; use {}", *api_version, *kind, versions.join(", "));
        errors.at(&api_version, message);
        return;
    }

    let metadata: Option<Metadata> = fields.take("metadata", errors);
    let mut wrong = Errors::default();
    let no_annotations = BTreeMap::new();
    let annotations = annotations::decode(
        metadata.as_ref().map_or(&no_annotations, |metadata| &metadata.annotations),
        *known == Kind::DestinationRule,
        &mut wrong,
    );
    let spec = if matches!(known, Kind::Secret | Kind::ConfigMap) { None } else { fields.node("spec") };
    let mut resource = match known {
        Kind::Secret => store::secret(&mut fields, &mut wrong).map(Resource::Secret),
        Kind::ConfigMap => store::config_map(&mut fields, &mut wrong).map(Resource::ConfigMap),
        Kind::ServiceEntry | Kind::DestinationRule | Kind::VirtualService | Kind::BackendTlsPolicy => {
            fields.ignore(&["status"]);
            match (spec, known) {
                (None, _) => {
                    let message = Code::MissingField.because("this field is required");
                    wrong.push(node.location.clone(), "spec", message);
                    None
                }
                (Some(spec), Kind::ServiceEntry) => {
                    service_entry::decode(spec, &mut wrong).map(Box::new).map(Resource::ServiceEntry)
                }
                (Some(spec), Kind::DestinationRule) => {
                    destination_rule::decode(spec, annotations, &mut wrong).map(Box::new).map(Resource::DestinationRule)
                }
                (Some(spec), Kind::VirtualService) => {
                    virtual_service::decode(spec, &mut wrong).map(Resource::VirtualService)
                }
                (Some(spec), _) => {
                    backend_tls_policy::decode(spec, &mut wrong).map(Box::new).map(Resource::BackendTlsPolicy)
                }
            }
        }
    };
    // What is malformed may be about anything.
    let is_sound = wrong.iter().all(|error| matches!(error.code, Code::Unsupported | Code::InvalidValue));
    match spec.filter(|_| wrong.count() > 0 && is_sound).and_then(|spec| mesh_hosts(*known, spec)) {
        Some(hosts) => {
            let unread = Some(Unread { hosts, errors: wrong });
            resource = Some(Resource::Foreign(Foreign { kind, workload: None, unread }));
        }
        None => errors.extend(wrong),
    }
    fields.finish(&[], errors);
    if let (Some(metadata), Some(resource)) = (metadata, resource) {
        documents.push(Document { location: node.location.clone(), metadata, resource });
    }
}

/// All hosts that a `DestinationRule` or `VirtualService` names, if they can be services of a cluster, and TLS of the kind that egress
/// originates is not asked for: then what is in it is for sidecars. Where it delegates it names not all that it leads to.
fn mesh_hosts(kind: Kind, spec: &Node<'_>) -> Option<Vec<HostPattern>> {
    if !matches!(kind, Kind::DestinationRule | Kind::VirtualService) {
        return None;
    }
    let [mut hosts, mut tls, mut routes] = [const { Vec::new() }; 3];
    values_of(spec, &["host", "hosts"], &mut hosts);
    let hosts: Vec<HostPattern> =
        hosts.into_iter().map(|host| text(host).and_then(|host| host.parse().ok())).collect::<Option<_>>()?;
    if kind == Kind::DestinationRule {
        values_of(spec, &["tls"], &mut tls);
    } else {
        values_of(spec, &["http"], &mut routes);
    }
    if routes.iter().any(|route| has_field(route, "delegate")) {
        return None;
    }
    let is_of_sidecars = |tls: &&Node<'_>| {
        let mut modes = Vec::new();
        values_of(tls, &["mode"], &mut modes);
        matches!(modes[..], [mode] if text(mode).is_some_and(|mode| ["DISABLE", "ISTIO_MUTUAL"].contains(&mode)))
    };
    let is_for_sidecars = !hosts.is_empty() && hosts.iter().all(HostPattern::may_be_of_mesh);
    (is_for_sidecars && tls.iter().all(is_of_sidecars)).then_some(hosts)
}

fn has_field(node: &Node<'_>, key: &str) -> bool {
    matches!(&node.value, Value::Map(entries) if entries.iter().any(|entry| entry.key == key))
}

fn text<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    if let Value::String(text) = &node.value { Some(text) } else { None }
}

/// What all fields with one of these names have, wherever they are; of lists their items.
fn values_of<'n, 's>(node: &'n Node<'s>, keys: &[&str], found: &mut Vec<&'n Node<'s>>) {
    match &node.value {
        Value::Map(entries) => {
            for Entry { key, value, .. } in entries {
                match &value.value {
                    Value::List(items) if keys.contains(&&**key) => found.extend(items),
                    _ if keys.contains(&&**key) => found.push(value),
                    _ => values_of(value, keys, found),
                }
            }
        }
        Value::List(items) => items.iter().for_each(|item| values_of(item, keys, found)),
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::String(_) => {}
    }
}

fn is_foreign(api_version: &str, kind: &str) -> bool {
    FOREIGN_KINDS.iter().any(|(name, kinds)| *name == group(api_version) && kinds.contains(&kind))
}

/// What is in it is not ours to find fault with.
fn foreign(location: super::Location, kind: Located<String>, fields: &mut Fields<'_>) -> Document {
    let metadata = fields.node("metadata");
    let mut workload: BTreeMap<String, String> = leniently(metadata, "labels").unwrap_or_default();
    workload.extend(leniently::<BTreeMap<_, _>>(fields.node("spec"), "labels").unwrap_or_default());
    let metadata = Metadata {
        name: leniently(metadata, "name").unwrap_or_default(),
        namespace: leniently(metadata, "namespace"),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let workload = (*kind == WORKLOAD_ENTRY).then_some(workload);
    Document { location, metadata, resource: Resource::Foreign(Foreign { kind, workload, unread: None }) }
}

fn leniently<T: Decode>(node: Option<&Node<'_>>, key: &'static str) -> Option<T> {
    let mut errors = Errors::default();
    Fields::of(node?, "", &mut errors)?.take(key, &mut errors)
}

/// The group of an `apiVersion`; that of Kubernetes itself is empty.
fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Why a kind is not one of ours.
fn why_foreign(api_version: &str, kind: &str) -> String {
    let group = group(api_version);
    let names = KINDS.map(|(name, ..)| name);
    if OTHER_KINDS.contains(&kind) && (group.ends_with("istio.io") || group == "gateway.networking.k8s.io") {
        return format!("kind {kind} is not supported by egress yet; remove it");
    }
    if let Some((_, _, versions)) = KINDS.iter().find(|(name, ..)| *name == kind) {
        return format!("{kind} is of another API group than {group:?}; use {}", versions[0]);
    }
    match closest(kind, names.iter()) {
        Some(meant) => format!("unknown kind {kind}; did you mean {meant}?"),
        None => format!("unknown kind {kind}; egress knows {}", names.join(", ")),
    }
}

impl Decode for Metadata {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let mut fields = Fields::of(node, path, errors)?;
        let name = fields.take("name", errors);
        let namespace = fields.take("namespace", errors);
        let labels = fields.take("labels", errors);
        let annotations: Option<BTreeMap<String, Located<String>>> = fields.take("annotations", errors);
        fields.ignore(&SERVER_METADATA);
        fields.ignore(&["uid"]);
        fields.finish(&[], errors);
        Some(Self { name: name?, namespace: namespace?, labels: labels?, annotations: annotations? })
    }
}
