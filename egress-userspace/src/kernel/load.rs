//! Loads what is in the eBPF object. aya's own loader begins by reading all of the kernel's types, whether or not a program asks for
//! them, which takes 25 ms and 40 MiB: none of ours does.

use std::{
    collections::HashMap,
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    BtfError, EbpfError,
    maps::{Map, MapData, MapError},
};
use aya_obj::{
    EbpfSectionKind, Object, ProgramSection,
    generated::{bpf_attach_type, bpf_map_type, bpf_prog_type},
};

use egress_common::names;

use super::{
    pins::Pins,
    programs::Program,
    syscall::{ProgramCode, freeze_map, load_program, load_types, open_pin, set_element},
};

/// Of programs that are attached to a name: `bpf_attach_type` begins with one for cgroups, which is 0.
const NO_ATTACH_TYPE: bpf_attach_type = bpf_attach_type::BPF_CGROUP_INET_INGRESS;

/// Programs that are linked with their maps, and may be loaded.
pub(super) struct Linked {
    object: Object,
    /// Of its maps and functions. Older kernels may not take them, and then refuse what cannot do without.
    types: Option<OwnedFd>,
    /// The programs are linked with these very descriptors.
    maps: HashMap<String, (bpf_map_type, MapData)>,
}

/// Why the kernel does not take a program.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The verifier stands against it, or something else does.
    #[error("{source}{}{log}", if log.is_empty() { "" } else { ". Verifier output: " })]
    Refused {
        /// The kernel's answer.
        source: io::Error,
        /// What the verifier says.
        log: String,
    },
    /// There is no such program in the object, or it is of a kind that we have none of.
    #[error("it is not in the object")]
    Missing,
}

impl Linked {
    /// Makes the maps, with these values of the programs' constants; what is pinned is taken as it is.
    pub(super) fn new(
        object: &[u8],
        constants: HashMap<&str, (&[u8], bool)>,
        pins: Option<&Pins>,
    ) -> Result<Self, EbpfError> {
        let mut object = Object::parse(object)?;
        object.patch_map_data(constants)?;
        let types = types(&mut object)?;
        let definitions = mem::take(&mut object.maps);
        let mut maps = HashMap::new();
        for (name, definition) in &definitions {
            let map_type = definition.map_type().try_into().map_err(MapError::from)?;
            maps.insert(name.clone(), (map_type, make(name, definition, types.as_ref(), pins)?));
        }
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        let descriptors = definitions.iter().map(|(name, definition)| {
            let (_, map) = &maps[name];
            (name.as_str(), map.fd().as_fd().as_raw_fd(), definition)
        });
        object.relocate_maps(descriptors, &sections)?;
        object.relocate_calls(&sections)?;
        object.sanitize_functions(aya::features());
        Ok(Self { object, types, maps })
    }

    /// One of the maps; None if the object has none of that name.
    pub(super) fn map(&self, name: &str) -> Result<Option<Map>, MapError> {
        let Some((map_type, map)) = self.maps.get(name) else { return Ok(None) };
        let map = MapData::from_fd(map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?)?;
        typed(name, *map_type, map).map(Some)
    }

    /// Descriptors of the maps that are pinned, by name.
    pub(super) fn pinned(&self) -> io::Result<Vec<(&'static str, OwnedFd)>> {
        let pinned = names::map::PINNED.iter().filter_map(|&name| Some((name, self.maps.get(name)?)));
        pinned.map(|(name, (_, map))| map.fd().as_fd().try_clone_to_owned().map(|map| (name, map))).collect()
    }

    /// Has the kernel verify a program.
    pub(super) fn load(&self, name: &str) -> Result<Program, LoadError> {
        let program = self.object.programs.get(name).ok_or(LoadError::Missing)?;
        let function = self.object.functions.get(&program.function_key()).ok_or(LoadError::Missing)?;
        let (kind, attach_type) = match program.section {
            ProgramSection::CgroupSockAddr { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach_type.into())
            }
            ProgramSection::CgroupSock { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, attach_type.into())
            }
            ProgramSection::CgroupSkb { attach_type: Some(attach_type) } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, attach_type.into())
            }
            ProgramSection::SockOps => (bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS, bpf_attach_type::BPF_CGROUP_SOCK_OPS),
            ProgramSection::RawTracePoint => (bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, NO_ATTACH_TYPE),
            _ => return Err(LoadError::Missing),
        };
        let code = ProgramCode {
            kind: kind as u32,
            attach_type: attach_type as u32,
            name,
            license: &program.license,
            instructions: &function.instructions,
            types: self.types.as_ref(),
            functions: (&function.func_info.func_info_bytes(), function.func_info_rec_size),
            lines: (&function.line_info.line_info_bytes(), function.line_info_rec_size),
        };
        let descriptor = load_program(&code).map_err(|(source, log)| LoadError::Refused { source, log })?;
        Ok(Program::new(descriptor, attach_type as u32))
    }
}

/// Has the kernel take the types of the object's maps and functions, as far as it knows such types.
fn types(object: &mut Object) -> Result<Option<OwnedFd>, BtfError> {
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let Some(types) = object.fixup_and_sanitize_btf(features)? else { return Ok(None) };
    match load_types(&types.to_bytes()) {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not take the types of the eBPF object");
            Ok(None)
        }
    }
}

fn make(
    name: &str,
    definition: &aya_obj::Map,
    types: Option<&OwnedFd>,
    pins: Option<&Pins>,
) -> Result<MapData, MapError> {
    let pin = pins.filter(|_| names::map::PINNED.contains(&name)).map(|pins| pins.map(name));
    if let Some(pin) = &pin
        && let Some(pinned) = open_pin(pin).map_err(MapError::IoError)?
    {
        return MapData::from_fd(pinned);
    }
    let map = MapData::create(definition.clone(), name, types.map(OwnedFd::as_fd))?;
    if let Some(pin) = &pin {
        map.pin(pin).map_err(|error| MapError::PinError { name: Some(name.to_owned()), error })?;
    }
    fill(map.fd().as_fd(), definition).map_err(MapError::IoError)?;
    Ok(map)
}

/// Gives a section of the object, which is a map with one value, its content.
fn fill(map: BorrowedFd<'_>, definition: &aya_obj::Map) -> io::Result<()> {
    if !definition.data().is_empty() {
        set_element(map, &0_u32, definition.data())?;
    }
    // The verifier takes as constant what nobody can change.
    if definition.section_kind() == EbpfSectionKind::Rodata { freeze_map(map) } else { Ok(()) }
}

fn typed(name: &str, map_type: bpf_map_type, map: MapData) -> Result<Map, MapError> {
    Ok(match map_type {
        bpf_map_type::BPF_MAP_TYPE_ARRAY => Map::Array(map),
        bpf_map_type::BPF_MAP_TYPE_HASH => Map::HashMap(map),
        bpf_map_type::BPF_MAP_TYPE_LPM_TRIE => Map::LpmTrie(map),
        bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY => Map::PerCpuArray(map),
        bpf_map_type::BPF_MAP_TYPE_RINGBUF => Map::RingBuf(map),
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE => Map::SkStorage(map),
        map_type => return Err(MapError::Unsupported { name: name.to_owned(), map_type }),
    })
}
