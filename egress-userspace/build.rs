//! Compiles the kernel side, which the binary carries inside.

fn main() {
    xtask::ebpf::build_script();
}
