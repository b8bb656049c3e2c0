//! QEMU's command line, as data. Nothing in it comes from a request but numbers; every file in it is a descriptor.

use std::{ops::RangeInclusive, os::fd::RawFd};

use serde::{Deserialize, Serialize};

use super::Accelerator;

/// The guest's network card. Every machine has a network of its own, so all have the same.
pub(super) use crate::net::GUEST_DEVICE as GUEST_MAC;

/// The object that is the machine's RAM.
pub(super) const RAM: &str = "ram";

/// Memory that emulation may keep translated code in, in parts of the guest's own, and its bounds. It is filled within
/// seconds, no two machines share it, and what does not fit is translated again.
const TRANSLATION_PART: u64 = 8;
const TRANSLATION_MIB: RangeInclusive<u64> = 32..=128;

/// Memory of the graphics card: enough for 1920 by 1080.
const VIDEO_MIB: u32 = 8;

/// Kinds of system calls that a QEMU never makes once it runs, refused by its own filter.
const FILTER: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What the guest sees as hardware. A memory image fits only what equals it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hardware {
    /// The versioned machine type.
    pub(super) machine: String,
    /// The processor's model.
    pub(super) cpu: String,
    /// Who runs it.
    pub(super) accelerator: Accelerator,
    /// Processors.
    pub(super) cpus: u32,
    /// RAM, in MiB.
    pub(super) memory_mib: u64,
}

/// How the RAM comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ram {
    /// A file without a name that is the machine's alone.
    Fresh(RawFd),
    /// The RAM of a memory image, mapped privately: pages that the machine writes become its own, the file never changes.
    Image(RawFd),
}

/// What starts in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Whatever the first disk has.
    Firmware,
    /// A kernel of the host's.
    Direct {
        /// The kernel.
        kernel: RawFd,
        /// Its initial file system.
        initramfs: Option<RawFd>,
        /// Its command line.
        command_line: String,
    },
}

/// Everything about one QEMU that is not the same for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation<'a> {
    /// The machine's name, by which it is known again.
    pub(super) name: &'a str,
    /// The hardware.
    pub(super) hardware: &'a Hardware,
    /// The RAM.
    pub(super) ram: Ram,
    /// Arguments for the disk's files, and the node that the guest's disk is; none: it has none.
    pub(super) disk: Vec<String>,
    pub(super) disk_node: Option<String>,
    /// What else makes it wait for the state of a memory image, if it goes on from one.
    pub(super) incoming: &'static [&'static str],
    /// What starts.
    pub(super) kernel: Kernel,
    /// The network interface on the host.
    pub(super) tap: RawFd,
    /// The listening socket of the monitor.
    pub(super) monitor: RawFd,
    /// The listening socket of the serial port.
    pub(super) console: RawFd,
}

/// The first arguments of every QEMU of ours, up to its machine's name.
pub(super) const NAME_ARGUMENT: &str = "-name";

impl Invocation<'_> {
    /// All arguments after the program's own name.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut all = Arguments(Vec::new());
        all.option(NAME_ARGUMENT, self.name);
        self.hardware_of(&mut all);
        self.channels(&mut all);
        self.disk(&mut all);
        self.devices(&mut all);
        self.kernel_of(&mut all);
        all.option("-sandbox", FILTER);
        all.0.extend(self.incoming.iter().map(|word| (*word).to_owned()));
        all.0
    }

    fn hardware_of(&self, all: &mut Arguments) {
        let Hardware { machine, cpu, accelerator, cpus, memory_mib } = self.hardware;
        all.flag("-no-user-config");
        all.flag("-nodefaults");
        // Controllers that no guest of ours has anything on, and timers that only cost.
        let without = "usb=off,sata=off,smbus=off,vmport=off,hpet=off";
        all.option("-machine", format!("{machine},{without},memory-backend={RAM}"));
        all.option(
            "-accel",
            match accelerator {
                Accelerator::Kvm => "kvm".to_owned(),
                Accelerator::Tcg => {
                    let part = memory_mib / TRANSLATION_PART;
                    let mib = part.clamp(*TRANSLATION_MIB.start(), *TRANSLATION_MIB.end());
                    format!("tcg,thread=multi,tb-size={mib}")
                }
            },
        );
        all.option("-cpu", cpu);
        all.option("-smp", format!("cpus={cpus},sockets=1,cores={cpus},threads=1"));
        all.option("-m", format!("size={memory_mib}M"));
        let (descriptor, how) = match self.ram {
            // For QEMU it is a file with a name, so that its content is left to us when the machine's state is written.
            Ram::Fresh(descriptor) => (descriptor, "share=on"),
            // Without `rom=off` a file that cannot be written would be memory that cannot be written.
            Ram::Image(descriptor) => (descriptor, "share=off,readonly=on,rom=off"),
        };
        let file = format!("mem-path=/proc/self/fd/{descriptor},size={memory_mib}M,{how}");
        all.option("-object", format!("memory-backend-file,id={RAM},{file},merge=off,dump=off"));
        all.option("-rtc", "base=utc,clock=host");
        // A guest that restarts would be one that nobody has greeted.
        all.option("-action", "reboot=shutdown,shutdown=poweroff,panic=exit-failure");
    }

    fn channels(&self, all: &mut Arguments) {
        let socket =
            |name: &str, descriptor: RawFd| format!("socket,id={name},fd={descriptor},server=on,wait=off");
        all.option("-chardev", socket("monitor", self.monitor));
        all.option("-mon", "chardev=monitor,mode=control");
        all.option("-chardev", socket("console", self.console));
        all.option("-device", "isa-serial,id=serial,chardev=console");
        // Connections to it come from the monitor; it listens nowhere.
        all.option("-display", "none");
        all.option("-vnc", "none");
    }

    fn disk(&self, all: &mut Arguments) {
        all.0.extend(self.disk.iter().cloned());
        if let Some(node) = &self.disk_node {
            // The guest is told of a full host as of a bad disk; a machine that stopped would wait for nobody.
            let how = "werror=report,rerror=report";
            // A kernel of the host's takes the first place by itself, and QEMU lets nobody share it.
            let first = if self.kernel == Kernel::Firmware { ",bootindex=0" } else { "" };
            all.option("-device", format!("virtio-blk-pci,id=disk,drive={node},{how}{first}"));
        }
    }

    fn devices(&self, all: &mut Arguments) {
        all.option("-netdev", format!("tap,id=net,fd={},vhost=off", self.tap));
        // No card needs to start a machine, so none brings a program for that.
        all.option("-device", format!("virtio-net-pci,id=nic,netdev=net,mac={GUEST_MAC},romfile="));
        all.option("-object", "rng-random,id=random,filename=/dev/urandom");
        all.option("-device", "virtio-rng-pci,id=rng,rng=random");
        all.option("-device", "vmgenid,id=generation,guid=auto");
        all.option("-device", format!("VGA,id=video,vgamem_mb={VIDEO_MIB}"));
    }

    fn kernel_of(&self, all: &mut Arguments) {
        let Kernel::Direct { kernel, initramfs, command_line } = &self.kernel else { return };
        all.option("-kernel", format!("/proc/self/fd/{kernel}"));
        if let Some(initramfs) = initramfs {
            all.option("-initrd", format!("/proc/self/fd/{initramfs}"));
        }
        all.option("-append", self.command_line(command_line));
    }

    /// The image's own command line, and what only the host can know.
    fn command_line(&self, image: &str) -> String {
        // A kernel that panics ends the machine. The last console is the one that programs get.
        let mut line = format!("{image} console=tty0 console=ttyS0 panic=-1");
        if self.hardware.accelerator == Accelerator::Tcg {
            // Nothing is speculated on, so there is nothing to guard; and a busy host makes the test of timers fail.
            line.push_str(" mitigations=off no_timer_check");
        }
        line.trim_start().to_owned()
    }
}

struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(accelerator: Accelerator) -> Hardware {
        Hardware {
            machine: "pc-q35-10.0".to_owned(),
            cpu: "Nehalem".to_owned(),
            accelerator,
            cpus: 2,
            memory_mib: 256,
        }
    }

    fn invocation(hardware: &Hardware) -> Invocation<'_> {
        Invocation {
            name: "0123abcd.1",
            hardware,
            ram: Ram::Fresh(20),
            disk: Vec::new(),
            disk_node: None,
            incoming: &[],
            kernel: Kernel::Direct {
                kernel: 30,
                initramfs: Some(31),
                command_line: "root=/dev/vda quiet".to_owned(),
            },
            tap: 40,
            monitor: 41,
            console: 42,
        }
    }

    /// The values of an option, in order.
    fn values(arguments: &[String], option: &str) -> Vec<String> {
        let pairs = arguments.iter().zip(arguments.iter().skip(1));
        pairs.filter(|(name, _)| *name == option).map(|(_, value)| value.clone()).collect()
    }

    #[test]
    fn the_whole_line() {
        let hardware = hardware(Accelerator::Tcg);
        let mut whole = invocation(&hardware);
        whole.disk = ["-add-fd", "fd=50,set=1000", "-blockdev", "{}"].map(str::to_owned).into();
        whole.disk_node = Some("layer-0".to_owned());
        let arguments = whole.arguments();
        let command_line =
            "root=/dev/vda quiet console=tty0 console=ttyS0 panic=-1 mitigations=off no_timer_check";
        let expected = [
            "-name",
            "0123abcd.1",
            "-no-user-config",
            "-nodefaults",
            "-machine",
            "pc-q35-10.0,usb=off,sata=off,smbus=off,vmport=off,hpet=off,memory-backend=ram",
            "-accel",
            "tcg,thread=multi,tb-size=32",
            "-cpu",
            "Nehalem",
            "-smp",
            "cpus=2,sockets=1,cores=2,threads=1",
            "-m",
            "size=256M",
            "-object",
            "memory-backend-file,id=ram,mem-path=/proc/self/fd/20,size=256M,share=on,merge=off,dump=off",
            "-rtc",
            "base=utc,clock=host",
            "-action",
            "reboot=shutdown,shutdown=poweroff,panic=exit-failure",
            "-chardev",
            "socket,id=monitor,fd=41,server=on,wait=off",
            "-mon",
            "chardev=monitor,mode=control",
            "-chardev",
            "socket,id=console,fd=42,server=on,wait=off",
            "-device",
            "isa-serial,id=serial,chardev=console",
            "-display",
            "none",
            "-vnc",
            "none",
            "-add-fd",
            "fd=50,set=1000",
            "-blockdev",
            "{}",
            "-device",
            "virtio-blk-pci,id=disk,drive=layer-0,werror=report,rerror=report",
            "-netdev",
            "tap,id=net,fd=40,vhost=off",
            "-device",
            "virtio-net-pci,id=nic,netdev=net,mac=02:53:48:00:00:02,romfile=",
            "-object",
            "rng-random,id=random,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,id=rng,rng=random",
            "-device",
            "vmgenid,id=generation,guid=auto",
            "-device",
            "VGA,id=video,vgamem_mb=8",
            "-kernel",
            "/proc/self/fd/30",
            "-initrd",
            "/proc/self/fd/31",
            "-append",
            command_line,
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn a_memory_image_is_mapped_privately_and_waited_for() {
        let hardware = hardware(Accelerator::Kvm);
        let mut restored = invocation(&hardware);
        restored.ram = Ram::Image(21);
        restored.incoming = &["-incoming", "defer", "-S"];
        let arguments = restored.arguments();
        let ram = "memory-backend-file,id=ram,mem-path=/proc/self/fd/21,size=256M,share=off,readonly=on,rom=off,merge=off,dump=off";
        assert_eq!(values(&arguments, "-object")[0], ram);
        assert_eq!(values(&arguments, "-incoming"), ["defer"]);
        assert!(arguments.contains(&"-S".to_owned()));
        assert_eq!(values(&arguments, "-accel"), ["kvm"]);
        assert!(!values(&arguments, "-append")[0].contains("mitigations"), "a processor speculates");
    }

    #[test]
    fn without_a_disk_or_a_kernel_none_is_named() {
        let hardware = hardware(Accelerator::Tcg);
        let mut bare = invocation(&hardware);
        bare.kernel = Kernel::Firmware;
        bare.disk_node = Some("layer-0".to_owned());
        let devices = values(&bare.arguments(), "-device");
        assert!(
            devices.iter().any(|device| device.starts_with("virtio-blk") && device.ends_with(",bootindex=0"))
        );
        bare.disk_node = None;
        let arguments = bare.arguments();
        for option in ["-kernel", "-initrd", "-append", "-blockdev", "-add-fd"] {
            assert_eq!(values(&arguments, option), Vec::<String>::new(), "{option}");
        }
        assert!(values(&arguments, "-device").iter().all(|device| !device.starts_with("virtio-blk")));
    }
}
