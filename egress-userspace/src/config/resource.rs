//! What every Kubernetes resource has around its `spec`: `apiVersion`, `kind`, `metadata`.

use std::collections::BTreeMap;

use super::{
    Document, Errors, Located, Resource,
    annotations::{self, Annotations},
    decode::{Decode, Fields, closest},
    destination_rule,
    node::{Node, Value},
    service_entry,
};

const API_VERSIONS: [&str; 3] =
    ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];

const KINDS: [&str; 2] = ["ServiceEntry", "DestinationRule"];

/// Kinds of Istio and of the Gateway API, each of which may stand beside ours in a user's file.
const OTHER_KINDS: [&str; 25] = [
    "AuthorizationPolicy",
    "BackendLBPolicy",
    "BackendTLSPolicy",
    "BackendTrafficPolicy",
    "EnvoyFilter",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "IstioOperator",
    "ListenerSet",
    "PeerAuthentication",
    "ProxyConfig",
    "ReferenceGrant",
    "RequestAuthentication",
    "Sidecar",
    "TCPRoute",
    "TLSRoute",
    "Telemetry",
    "TrafficExtension",
    "UDPRoute",
    "VirtualService",
    "WasmPlugin",
    "WorkloadEntry",
    "WorkloadGroup",
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
    /// Annotations; what ours ask for is with what they are about.
    pub annotations: BTreeMap<String, Located<String>>,
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
                errors.push(other.location.clone(), "items", format!("expected a list, found {}", other.value));
            }
            None => {}
        }
        return;
    }
    if let Some(message) = why_foreign(&api_version, &kind) {
        errors.push(kind.location, "", message);
        return;
    }
    if !API_VERSIONS.contains(&api_version.as_str()) {
        let message = format!("unknown version {:?} of {}; use {}", *api_version, *kind, API_VERSIONS.join(", "));
        errors.at(&api_version, message);
        return;
    }

    let metadata: Option<Metadata> = fields.take("metadata", errors);
    let annotations =
        metadata.as_ref().map(|metadata| annotations::decode(&kind, &metadata.annotations, errors)).unwrap_or_default();
    let spec: Option<Spec<'_>> = fields.node("spec").map(Spec).or_else(|| {
        errors.push(node.location.clone(), "spec", "this field is required");
        None
    });
    fields.ignore(&["status"]);
    fields.finish(&[], errors);
    let resource = spec.and_then(|spec| spec.decode(&kind, &annotations, errors));
    if let (Some(metadata), Some(resource)) = (metadata, resource) {
        documents.push(Document { location: node.location.clone(), metadata, resource });
    }
}

/// A `spec` whose kind is known to be one of [`KINDS`].
struct Spec<'n>(&'n Node);

impl Spec<'_> {
    fn decode(self, kind: &str, annotations: &Annotations, errors: &mut Errors) -> Option<Resource> {
        if kind == KINDS[0] {
            service_entry::decode(self.0, errors).map(Resource::ServiceEntry)
        } else {
            destination_rule::decode(self.0, annotations, errors).map(Resource::DestinationRule)
        }
    }
}

/// Why a kind is not one of ours, if so.
fn why_foreign(api_version: &str, kind: &str) -> Option<String> {
    if KINDS.contains(&kind) {
        return None;
    }
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let is_known = OTHER_KINDS.contains(&kind) && (group.ends_with("istio.io") || group == "gateway.networking.k8s.io");
    Some(if is_known {
        format!("kind {kind} is not supported by egress yet")
    } else {
        match closest(kind, KINDS.iter()) {
            Some(meant) => format!("unknown kind {kind}; did you mean {meant}?"),
            None => format!("unknown kind {kind}; egress knows {}", KINDS.join(" and ")),
        }
    })
}

impl Decode for Metadata {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let mut fields = Fields::of(node, path, errors)?;
        let name = fields.take("name", errors);
        let namespace = fields.take("namespace", errors);
        let labels = fields.take("labels", errors);
        let annotations = fields.take("annotations", errors);
        fields.ignore(&SERVER_METADATA);
        fields.ignore(&["uid"]);
        fields.finish(&[], errors);
        Some(Self { name: name?, namespace: namespace?, labels: labels?, annotations: annotations? })
    }
}
