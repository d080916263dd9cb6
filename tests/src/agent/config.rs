//! Configuration that changes under a running agent, as an editor changes it and as the kubelet does.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A directory of YAML files.
#[derive(Debug)]
pub struct ConfigDir {
    path: PathBuf,
}

/// What is in every directory, as one without files is refused.
const NO_RULES: (&str, &str) = ("none.yaml", "# No rules.\n");

impl ConfigDir {
    /// Makes one without rules, unless there is one.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        let directory = Self { path: path.to_owned() };
        let (name, text) = NO_RULES;
        directory.write(name, text)?;
        Ok(directory)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file at once: it is written beside the directory and then moved into it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.path.with_extension("draft");
        fs::write(&draft, text)?;
        Ok(fs::rename(draft, self.path.join(name))?)
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.path.join(name)).with_context(|| format!("removing {name}"))
    }
}

/// A directory as the kubelet mounts a ConfigMap: files are links into `..data`, which is itself a link that is exchanged.
#[derive(Debug)]
pub struct ConfigMap {
    path: PathBuf,
    version: usize,
}

impl ConfigMap {
    /// Makes one with these files.
    pub fn create(path: &Path, files: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("creating {}", path.display()))?;
        let mut map = Self { path: path.to_owned(), version: 0 };
        map.replace(files)?;
        Ok(map)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces all files at once, in the kubelet's order: new data, exchange, links, old data.
    pub fn replace(&mut self, files: &[(&str, &str)]) -> Result<()> {
        let old = format!("..version_{}", self.version);
        self.version += 1;
        let new = format!("..version_{}", self.version);
        fs::create_dir(self.path.join(&new))?;
        for (name, text) in files {
            fs::write(self.path.join(&new).join(name), text)?;
        }
        let draft = self.path.join("..data_tmp");
        symlink(&new, &draft)?;
        fs::rename(&draft, self.path.join("..data"))?;
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let gone = !files.iter().any(|(known, _)| *known == name);
            if gone && !name.to_string_lossy().starts_with("..") {
                fs::remove_file(self.path.join(name))?;
            }
        }
        for (name, _) in files {
            let link = self.path.join(name);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(name), link)?;
            }
        }
        fs::remove_dir_all(self.path.join(old)).ok();
        Ok(())
    }
}
