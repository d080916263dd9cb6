//! Build, run and test tasks of egress: `cargo xtask --help`.
use xtask::ebpf;
fn main() -> anyhow::Result<()> {
    let repo = ebpf::repository();
    let tools = ebpf::Tools::find().map_err(|missing| anyhow::anyhow!(missing.explain()))?;
    let built = ebpf::build(&tools, &repo, &repo.join("target/ebpf"), std::env::consts::ARCH)?;
    println!("{tools:?}\n{built:?}");
    Ok(())
}
