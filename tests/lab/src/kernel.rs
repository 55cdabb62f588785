// SPDX-License-Identifier: GPL-3.0-or-later
//! The kernel of every machine: its uncompressed image, and choices of its modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::cpio::Root;
use crate::host_tools::{nice, output};
use crate::packages::Apt;
use crate::progress::Step;
use crate::tree::Tree;

/// The extracted kernel packages.
pub struct Kernel {
    /// `uname -r` of it.
    pub version: String,
    /// The uncompressed ELF image: unpacking a compressed one takes long under emulation.
    pub vmlinux: PathBuf,
    modules: PathBuf,
    /// Module name (with `_`) -> path below `kernel/`, and what it depends on.
    dependencies: BTreeMap<String, (String, Vec<String>)>,
}

impl Kernel {
    /// Download, extract and index if it is not in the cache.
    pub fn open(cache: &Cache, apt: &Apt, tree: &Tree, version: &str) -> Result<Self> {
        let names: Vec<String> = ["linux-base-", "linux-binary-", "linux-modules-"]
            .map(|prefix| format!("{prefix}{version}"))
            .into();
        let packages = apt.tree(cache, "kernel-packages", &names, false)?;
        let directory = packages.join("usr/lib/modules").join(version);
        let prepared = cache.artefact("kernel", Key::new().with_artefact(&packages), |out| {
            let step = Step::start("kernel image and module index");
            unpack_image(&directory.join("vmlinuz"), &out.join("vmlinux"))?;
            // depmod wants a tree of its own to write its index into.
            let module_root = out.join("root/lib/modules");
            fs::create_dir_all(&module_root)?;
            std::os::unix::fs::symlink(&directory, module_root.join(version))?;
            let index = out.join("index");
            depmod(tree, &out.join("root"), &index, version)?;
            step.done();
            Ok(())
        })?;
        let text = fs::read_to_string(
            prepared
                .join("index/lib/modules")
                .join(version)
                .join("modules.dep"),
        )?;
        let mut dependencies = BTreeMap::new();
        for line in text.lines() {
            let Some((path, needs)) = line.split_once(':') else {
                continue;
            };
            let needs = needs.split_whitespace().map(module_name).collect();
            dependencies.insert(module_name(path), (path.to_owned(), needs));
        }
        Ok(Self {
            version: version.to_owned(),
            vmlinux: prepared.join("vmlinux"),
            modules: directory,
            dependencies,
        })
    }

    /// Copy modules and all that they depend on into a root, uncompressed, with an index.
    pub fn install_modules(&self, tree: &Tree, root: &mut Root, names: &[&str]) -> Result<()> {
        let scratch =
            std::env::temp_dir().join(format!("xen-vusb-lab-modules-{}", std::process::id()));
        let base = scratch.join("lib/modules").join(&self.version);
        let mut wanted = BTreeSet::new();
        for name in names {
            let name = name.replace('-', "_");
            match self.dependencies.get(&name) {
                Some((path, needs)) => {
                    wanted.insert(path.clone());
                    wanted.extend(
                        needs
                            .iter()
                            .filter_map(|need| self.dependencies.get(need))
                            .map(|(path, _)| path.clone()),
                    );
                }
                // Built into the kernel, or a misspelling: only the start-up scripts can tell.
                None => bail!("kernel {} has no module {name}", self.version),
            }
        }
        for path in wanted {
            let data = output(Command::new("xz").arg("-dc").arg(self.modules.join(&path)))?;
            let path = path.trim_end_matches(".xz");
            let file = base.join(path);
            fs::create_dir_all(file.parent().context("module path")?)?;
            fs::write(&file, &data)?;
            root.file(
                &format!("usr/lib/modules/{}/{path}", self.version),
                0o644,
                data,
            );
        }
        depmod(tree, &scratch, &scratch, &self.version)?;
        for name in [
            "modules.dep",
            "modules.dep.bin",
            "modules.alias",
            "modules.alias.bin",
            "modules.symbols.bin",
            "modules.softdep",
            "modules.builtin.bin",
            "modules.builtin.alias.bin",
            "modules.devname",
        ] {
            let file = base.join(name);
            if file.exists() {
                root.copy(&format!("usr/lib/modules/{}/{name}", self.version), &file)?;
            }
        }
        fs::remove_dir_all(&scratch)?;
        Ok(())
    }
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn depmod(tree: &Tree, base: &Path, out: &Path, version: &str) -> Result<()> {
    output(
        tree.command_as("usr/bin/kmod", "depmod")
            .arg("-b")
            .arg(base)
            .arg("-o")
            .arg(out)
            .arg(version),
    )?;
    Ok(())
}

/// Cut the payload out of a bzImage (x86 boot protocol: `setup_sects`, `payload_offset`,
/// `payload_length`) and decompress it.
fn unpack_image(image: &Path, to: &Path) -> Result<()> {
    let data = fs::read(image)?;
    let word = |offset: usize| -> Result<usize> {
        let bytes: [u8; 4] = data
            .get(offset..offset + 4)
            .context("kernel image too short")?
            .try_into()?;
        Ok(u32::from_le_bytes(bytes) as usize)
    };
    let setup = (usize::from(*data.get(0x1f1).context("kernel image too short")?) + 1) * 512;
    let start = setup + word(0x248)?;
    // The last four bytes are the unpacked size, put there for the boot code.
    let end = start + word(0x24c)? - 4;
    let payload = data
        .get(start..end)
        .context("kernel payload outside the image")?;
    let unpacker = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        _ => bail!(
            "kernel payload in an unknown compression: {:02x?}",
            &payload[..6]
        ),
    };
    let packed = to.with_extension("packed");
    fs::write(&packed, payload)?;
    let unpacked = output(nice(unpacker).arg("-dc").arg(&packed))?;
    fs::remove_file(&packed)?;
    if !unpacked.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is not an ELF image");
    }
    fs::write(to, unpacked)?;
    Ok(())
}
