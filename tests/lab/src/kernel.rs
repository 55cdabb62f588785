// SPDX-License-Identifier: GPL-3.0-or-later
//! Kernels: their uncompressed images, and choices of their modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::cache::{Cache, Key};
use crate::cpio::Root;
use crate::debug_kernel::DebugKernel;
use crate::host_tools::{nice, output};
use crate::packages::{Apt, Release};
use crate::progress::Step;
use crate::tree::Tree;

/// Kernels for guests. All machines but the guest run the backports'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Choice {
    /// Debian 13's backports: the only one with `xen-hcd`.
    #[default]
    Backports,
    /// Debian 13's own, 6.12.
    #[value(name = "debian-13")]
    #[serde(rename = "debian-13")]
    Debian13,
    /// Debian 12's own, 6.1.
    #[value(name = "debian-12")]
    #[serde(rename = "debian-12")]
    Debian12,
    /// Debian 13's source, built here with the kernel's own checks: see [`DebugKernel`].
    Debug,
}

impl Choice {
    /// Those that are Debian packages.
    pub const DEBIAN: [Self; 3] = [Self::Backports, Self::Debian13, Self::Debian12];

    /// Its name on the command line and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backports => "backports",
            Self::Debian13 => "debian-13",
            Self::Debian12 => "debian-12",
            Self::Debug => "debug",
        }
    }

    /// The release whose lists have it.
    pub fn release(self) -> Release {
        match self {
            Self::Backports | Self::Debian13 | Self::Debug => Release::Trixie,
            Self::Debian12 => Release::Bookworm,
        }
    }

    /// The suite that its metapackages are in.
    pub fn suite(self) -> &'static str {
        match self {
            Self::Backports => "trixie-backports",
            Self::Debian13 | Self::Debug => "trixie",
            Self::Debian12 => "bookworm",
        }
    }

    /// The compiler that it was built with, which its modules are to be built with too.
    pub fn compiler(self) -> &'static str {
        match self {
            Self::Backports | Self::Debian13 | Self::Debug => "gcc-14",
            Self::Debian12 => "gcc-12",
        }
    }

    /// The stock frontend is in it.
    pub fn has_stock_driver(self) -> bool {
        self == Self::Backports
    }

    /// Name of an artefact of this kernel. The backports' artefacts, which everybody needs, are
    /// named without it.
    pub fn artefact(self, kind: &str) -> String {
        match self {
            Self::Backports => kind.to_owned(),
            _ => format!("{kind}-{}", self.name()),
        }
    }

    /// The packages that have its image and its modules.
    fn packages(self, version: &str) -> Vec<String> {
        let prefixes: &[&str] = match self {
            // Split, so that the image can be signed by itself.
            Self::Backports => &["linux-base-", "linux-binary-", "linux-modules-"],
            Self::Debian13 | Self::Debian12 => &["linux-image-"],
            // Not in a package.
            Self::Debug => &[],
        };
        prefixes
            .iter()
            .map(|prefix| format!("{prefix}{version}"))
            .collect()
    }
}

/// The extracted kernel packages.
pub struct Kernel {
    /// `uname -r` of it.
    pub version: String,
    /// The uncompressed ELF image: unpacking a compressed one takes long under emulation.
    pub vmlinux: PathBuf,
    /// The image that unpacks itself, of a packaged kernel.
    pub vmlinuz: Option<PathBuf>,
    modules: PathBuf,
    /// Module name (with `_`) -> path below `kernel/`, and what it depends on.
    dependencies: BTreeMap<String, (String, Vec<String>)>,
}

impl Kernel {
    /// Download, extract and index if it is not in the cache.
    pub fn open(cache: &Cache, apt: &Apt, tree: &Tree, choice: Choice) -> Result<Self> {
        if choice == Choice::Debug {
            let built = DebugKernel::build(cache, apt)?;
            let key = Key::new().with_artefact(&built.artefact);
            return Self::indexed(
                cache,
                tree,
                (choice, key),
                &built.version,
                built.modules,
                |to| {
                    fs::copy(&built.vmlinux, to)?;
                    Ok(())
                },
            );
        }
        apt.with_kernel(choice.suite(), |version| {
            Self::of_version(cache, apt, tree, choice, version)
        })
    }

    fn of_version(
        cache: &Cache,
        apt: &Apt,
        tree: &Tree,
        choice: Choice,
        version: &str,
    ) -> Result<Self> {
        let packages = apt.tree(
            cache,
            &choice.artefact("kernel-packages"),
            &choice.packages(version),
            false,
        )?;
        let directory = packages.join("usr/lib/modules").join(version);
        let image = [
            directory.join("vmlinuz"),
            packages.join("boot").join(format!("vmlinuz-{version}")),
        ]
        .into_iter()
        .find(|image| image.exists())
        .with_context(|| format!("no kernel image in {}", packages.display()))?;
        let key = Key::new().with_artefact(&packages);
        let kernel = Self::indexed(cache, tree, (choice, key), version, directory, |to| {
            unpack_image(&image, to)
        })?;
        Ok(Self {
            vmlinuz: Some(image),
            ..kernel
        })
    }

    /// One whose modules are in `directory`, and whose image `unpack` puts where it is told.
    fn indexed(
        cache: &Cache,
        tree: &Tree,
        (choice, key): (Choice, Key),
        version: &str,
        directory: PathBuf,
        unpack: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let prepared = cache.artefact(&choice.artefact("kernel"), key, |out| {
            let step = Step::start("kernel image and module index");
            unpack(&out.join("vmlinux"))?;
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
            vmlinuz: None,
            modules: directory,
            dependencies,
        })
    }

    /// A module's path below the kernel's module directory, and its file here.
    pub fn module_file(&self, name: &str) -> Result<(&str, PathBuf)> {
        let (path, _) = self
            .dependencies
            .get(name)
            .with_context(|| format!("kernel {} has no module {name}", self.version))?;
        Ok((path, self.modules.join(path)))
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
            let from = self.modules.join(&path);
            let data = if path.ends_with(".xz") {
                output(Command::new("xz").arg("-dc").arg(from))?
            } else {
                fs::read(from)?
            };
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
