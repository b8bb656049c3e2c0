//! Whether hardware virtualisation works here, found out by running a guest. A device that opens proves nothing: on
//! some hosts it emulates guests, slowly and not completely.
//!
//! The guest is 64-bit code with what a stock kernel needs early: `lock cmpxchg16b`, a breakpoint through its own
//! interrupt table, `xsave`/`xrstor`, and a loop long enough to tell a processor from an emulator. It ends by HLT with
//! a sum in a register. The probe is a process of its own (`sandhaus __kvm-probe`), because a guest that hangs holds
//! its thread inside the kernel, and only a kill ends that.
#![expect(unsafe_code, reason = "KVM is driven by ioctls on shared memory")]

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::{Child, Command, ExitCode, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
    time::Timespec,
};

/// First argument with which the binary re-executes itself as the probe.
pub(crate) const PROBE_ARGUMENT: &str = "__kvm-probe";

/// How long the guest may take. A processor needs a few milliseconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The guest ran to its end.
    Works,
    /// There is no device, or it cannot be opened.
    Absent(String),
    /// The device is there and does not run the guest.
    Broken(String),
}

/// The probe's verdict; it runs once in the life of a process.
pub(crate) fn verdict() -> &'static Verdict {
    static VERDICT: OnceLock<Verdict> = OnceLock::new();
    VERDICT.get_or_init(probe)
}

fn probe() -> Verdict {
    if let Err(error) = fs_err::OpenOptions::new().read(true).write(true).open(DEVICE) {
        return Verdict::Absent(error.to_string());
    }
    match run_probe() {
        Ok(verdict) => verdict,
        Err(error) => Verdict::Broken(format!("{error:#}")),
    }
}

fn run_probe() -> Result<Verdict> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(PROBE_ARGUMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the probe")?;
    // The probe writes one short line at most, so its pipe never fills.
    if !ends_in_time(&child)? {
        child.kill().context("end the probe")?;
        child.wait()?;
        let seconds = PROBE_TIMEOUT.as_secs();
        return Ok(Verdict::Broken(format!("a test guest did not end within {seconds} s")));
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(Verdict::Works);
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut said)?;
    }
    Ok(Verdict::Broken(match said.trim() {
        "" => format!("the probe ended with {status}"),
        said => said.to_owned(),
    }))
}

/// Waits for the probe's end; false if it does not come in time.
fn ends_in_time(child: &Child) -> Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("number of the probe")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("watch the probe")?;
    let deadline = Instant::now() + PROBE_TIMEOUT;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("watch the probe"),
        }
    }
}

/// The probe's life, entered from `main`.
#[expect(clippy::print_stderr, reason = "the probe tells its parent why")]
pub(crate) fn probe_main() -> ExitCode {
    match imp::run_guest() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

const DEVICE: &str = "/dev/kvm";

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use super::*;

    pub(super) fn run_guest() -> Result<()> {
        anyhow::bail!("there is no test guest for this kind of processor")
    }
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use super::*;

    // The numbers of the kernel's interface, as `linux/kvm.h` gives them.
    const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
    const KVM_CREATE_VM: libc::c_ulong = 0xAE01;
    const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xAE04;
    const KVM_CREATE_VCPU: libc::c_ulong = 0xAE41;
    const KVM_SET_TSS_ADDR: libc::c_ulong = 0xAE47;
    const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_AE46;
    const KVM_GET_SUPPORTED_CPUID: libc::c_ulong = 0xC008_AE05;
    const KVM_SET_CPUID2: libc::c_ulong = 0x4008_AE90;
    const KVM_RUN: libc::c_ulong = 0xAE80;
    const KVM_GET_REGS: libc::c_ulong = 0x8090_AE81;
    const KVM_SET_REGS: libc::c_ulong = 0x4090_AE82;
    const KVM_GET_SREGS: libc::c_ulong = 0x8138_AE83;
    const KVM_SET_SREGS: libc::c_ulong = 0x4138_AE84;
    const KVM_API_VERSION: libc::c_int = 12;
    const KVM_EXIT_HLT: u32 = 5;
    const CPUID_ENTRIES_MAX: usize = 256;
    /// Place of three pages that Intel processors need; anywhere outside of the guest's memory.
    const TSS_ADDRESS: libc::c_ulong = 0xFFFB_D000;

    // The guest's memory.
    const MEMORY_BYTES: usize = 2 << 20;
    const PML4: u64 = 0x1000;
    const PDPT: u64 = 0x2000;
    const PD: u64 = 0x3000;
    const GDT: u64 = 0x4000;
    const IDT: u64 = 0x5000;
    const CODE: u64 = 0x6000;
    const HANDLER: u64 = 0x7000;
    const STACK_TOP: u64 = 0x9000;
    const SCRATCH: u64 = 0xA000;
    const XSAVE_AREA: u64 = 0xB000;

    const SELECTOR_CODE: u16 = 0x08;
    const SELECTOR_DATA: u16 = 0x10;
    const VECTOR_BREAKPOINT: u64 = 3;

    const CR0_PE_ET_NE_WP_PG: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    const CR0_MP: u64 = 1 << 1;
    const CR4_PAE_OSFXSR_OSXMMEXCPT_OSXSAVE: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

    /// Rounds of the guest's loop: a blink for a processor, minutes for an emulator.
    const LOOP_ROUNDS: u32 = 20_000_000;

    /// What the guest leaves in RBX: one from the exchange and two from the breakpoint.
    const SUM: u64 = 3;

    #[repr(C)]
    struct MemoryRegion {
        slot: u32,
        flags: u32,
        guest_address: u64,
        bytes: u64,
        host_address: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    struct Registers {
        rax: u64,
        rbx: u64,
        rcx: u64,
        rdx: u64,
        rsi: u64,
        rdi: u64,
        rsp: u64,
        rbp: u64,
        r8_to_r15: [u64; 8],
        rip: u64,
        rflags: u64,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Segment {
        base: u64,
        limit: u32,
        selector: u16,
        kind: u8,
        present: u8,
        dpl: u8,
        db: u8,
        s: u8,
        l: u8,
        g: u8,
        avl: u8,
        unusable: u8,
        padding: u8,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Table {
        base: u64,
        limit: u16,
        padding: [u16; 3],
    }

    #[repr(C)]
    struct SpecialRegisters {
        cs: Segment,
        ds: Segment,
        es: Segment,
        fs: Segment,
        gs: Segment,
        ss: Segment,
        tr: Segment,
        ldt: Segment,
        gdt: Table,
        idt: Table,
        cr0: u64,
        cr2: u64,
        cr3: u64,
        cr4: u64,
        cr8: u64,
        efer: u64,
        apic_base: u64,
        interrupt_bitmap: [u64; 4],
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct CpuidEntry {
        words: [u32; 10],
    }

    #[repr(C)]
    struct Cpuid {
        count: u32,
        padding: u32,
        entries: [CpuidEntry; CPUID_ENTRIES_MAX],
    }

    const _: () = assert!(size_of::<Registers>() == 0x90 && size_of::<SpecialRegisters>() == 0x138);

    pub(super) fn run_guest() -> Result<()> {
        let device = fs_err::OpenOptions::new().read(true).write(true).open(DEVICE)?;
        // SAFETY: these requests take no pointer.
        let version = unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION, 0) };
        ensure!(version == KVM_API_VERSION, "the interface has version {version}");
        // SAFETY: as above; the answer is a descriptor of ours.
        let vm = unsafe { descriptor(libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, 0)) }
            .context("create a VM")?;
        // SAFETY: the request takes an address by value.
        checked(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_SET_TSS_ADDR, TSS_ADDRESS) })
            .context("place the TSS")?;

        let memory = Mapping::new(MEMORY_BYTES, None)?;
        memory.write_guest();
        let region = MemoryRegion {
            slot: 0,
            flags: 0,
            guest_address: 0,
            bytes: MEMORY_BYTES as u64,
            host_address: memory.address as u64,
        };
        // SAFETY: the record is laid out as the kernel's and names memory that outlives the VM.
        checked(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_SET_USER_MEMORY_REGION, &raw const region) })
            .context("give memory to the VM")?;

        // SAFETY: the request takes a number by value; the answer is a descriptor of ours.
        let vcpu = unsafe { descriptor(libc::ioctl(vm.as_raw_fd(), KVM_CREATE_VCPU, 0)) }
            .context("create a processor")?;
        set_cpuid(&device, &vcpu)?;
        set_registers(&vcpu)?;

        // SAFETY: the request takes no pointer.
        let bytes = unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_VCPU_MMAP_SIZE, 0) };
        let shared = Mapping::new(usize::try_from(bytes).context("size of the shared page")?, Some(&vcpu))?;
        // SAFETY: the request takes no pointer; the guest can only touch its own memory.
        checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) }).context("run the guest")?;
        // SAFETY: the kernel keeps the reason of the exit at offset 8 of the shared page, aligned for a u32.
        let reason = unsafe { shared.address.cast::<u8>().add(8).cast::<u32>().read_volatile() };
        ensure!(
            reason == KVM_EXIT_HLT,
            "a test guest stopped for reason {reason}: it is not run by the processor"
        );
        let mut registers = Registers::default();
        // SAFETY: the record is laid out as the kernel's, which writes all of it.
        checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_REGS, &raw mut registers) })
            .context("read registers")?;
        ensure!(registers.rbx == SUM, "a test guest computed {} where {SUM} is right", registers.rbx);
        Ok(())
    }

    fn set_cpuid(device: &impl AsRawFd, vcpu: &OwnedFd) -> Result<()> {
        let entry = CpuidEntry { words: [0; 10] };
        let count = u32::try_from(CPUID_ENTRIES_MAX).expect("a small number");
        let mut cpuid = Box::new(Cpuid { count, padding: 0, entries: [entry; CPUID_ENTRIES_MAX] });
        // SAFETY: the record is laid out as the kernel's and has room for as many entries as it says.
        checked(unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_SUPPORTED_CPUID, &raw mut *cpuid) })
            .context("ask for processor features")?;
        // SAFETY: as above; the kernel only reads it.
        checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_CPUID2, &raw const *cpuid) })
            .context("set processor features")
    }

    fn set_registers(vcpu: &OwnedFd) -> Result<()> {
        let mut special = std::mem::MaybeUninit::<SpecialRegisters>::uninit();
        // SAFETY: the record is laid out as the kernel's, which writes all of it.
        checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS, special.as_mut_ptr()) })
            .context("read special registers")?;
        // SAFETY: the call above succeeded and any bits are a value.
        let mut special = unsafe { special.assume_init() };
        let code = Segment {
            base: 0,
            limit: u32::MAX,
            selector: SELECTOR_CODE,
            kind: 0b1011,
            present: 1,
            dpl: 0,
            db: 0,
            s: 1,
            l: 1,
            g: 1,
            avl: 0,
            unusable: 0,
            padding: 0,
        };
        let data = Segment { selector: SELECTOR_DATA, kind: 0b0011, db: 1, l: 0, ..code };
        (special.cs, special.ds, special.es, special.fs, special.gs, special.ss) =
            (code, data, data, data, data, data);
        special.gdt = Table { base: GDT, limit: 0x17, padding: [0; 3] };
        special.idt = Table { base: IDT, limit: 0xfff, padding: [0; 3] };
        special.cr0 = CR0_PE_ET_NE_WP_PG | CR0_MP;
        special.cr3 = PML4;
        special.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT_OSXSAVE;
        special.efer = EFER_LME_LMA;
        // SAFETY: the record is laid out as the kernel's, which only reads it.
        checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS, &raw const special) })
            .context("set special registers")?;
        let registers = Registers { rip: CODE, rsp: STACK_TOP, rflags: 2, ..Registers::default() };
        // SAFETY: as above.
        checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_REGS, &raw const registers) })
            .context("set registers")
    }

    /// Memory shared with the kernel, unmapped at the end.
    struct Mapping {
        address: *mut libc::c_void,
        bytes: usize,
    }

    impl Mapping {
        /// Anonymous, or of the descriptor.
        fn new(bytes: usize, of: Option<&OwnedFd>) -> Result<Self> {
            let (flags, fd) = match of {
                Some(fd) => (libc::MAP_SHARED, fd.as_raw_fd()),
                None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            };
            // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
            let address = unsafe {
                libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0)
            };
            if address == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error()).context("map memory");
            }
            Ok(Self { address, bytes })
        }

        /// Page tables, descriptor tables and the code.
        fn write_guest(&self) {
            let present_writable: u64 = 0b11;
            let large: u64 = 1 << 7;
            self.write(PML4, &(PDPT | present_writable).to_le_bytes());
            self.write(PDPT, &(PD | present_writable).to_le_bytes());
            self.write(PD, &(large | present_writable).to_le_bytes());
            // Flat 64-bit code and data, for the interrupt's way through the table.
            self.write(GDT + u64::from(SELECTOR_CODE), &0x00AF_9B00_0000_FFFF_u64.to_le_bytes());
            self.write(GDT + u64::from(SELECTOR_DATA), &0x00CF_9300_0000_FFFF_u64.to_le_bytes());
            let gate_low = (HANDLER & 0xffff) | u64::from(SELECTOR_CODE) << 16 | 0x8E00 << 32;
            self.write(IDT + VECTOR_BREAKPOINT * 16, &gate_low.to_le_bytes());
            self.write(CODE, &code());
            // add rbx, 2; iretq
            self.write(HANDLER, &[0x48, 0x83, 0xc3, 0x02, 0x48, 0xcf]);
        }

        fn write(&self, at: u64, bytes: &[u8]) {
            let at = usize::try_from(at).expect("guest addresses are small");
            assert!(at + bytes.len() <= self.bytes, "the guest's layout fits its memory");
            // SAFETY: the range was checked to lie inside of the mapping, which nobody else uses yet.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.cast::<u8>().add(at), bytes.len())
            };
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours and nothing refers to it any more.
            unsafe { libc::munmap(self.address, self.bytes) };
        }
    }

    /// The guest's code.
    fn code() -> Vec<u8> {
        let address = |at: u64| u32::try_from(at).expect("guest addresses are small").to_le_bytes();
        let mut code = vec![0x31, 0xdb]; // xor ebx, ebx
        code.extend([0xbe]); // mov esi, SCRATCH
        code.extend(address(SCRATCH));
        code.extend([0x31, 0xc0, 0x31, 0xd2]); // xor eax, eax; xor edx, edx: compare with zero
        code.extend([0x31, 0xc9]); // xor ecx, ecx
        code.extend([0xbb, 0x01, 0, 0, 0]); // mov ebx, 1: exchange for one, and the sum's first part
        code.extend([0xf0, 0x48, 0x0f, 0xc7, 0x0e]); // lock cmpxchg16b [rsi]
        code.extend([0x75, 0xfe]); // jne self: hang if the memory was not zero
        code.extend([0xcc]); // int3: the handler adds two
        code.extend([0x31, 0xc9]); // xor ecx, ecx
        code.extend([0xb8, 0x03, 0, 0, 0]); // mov eax, 3: x87 and SSE
        code.extend([0x31, 0xd2]); // xor edx, edx
        code.extend([0x0f, 0x01, 0xd1]); // xsetbv
        code.extend([0xbe]); // mov esi, XSAVE_AREA
        code.extend(address(XSAVE_AREA));
        code.extend([0x0f, 0xae, 0x26]); // xsave [rsi]
        code.extend([0x0f, 0xae, 0x2e]); // xrstor [rsi]
        code.extend([0xb9]); // mov ecx, LOOP_ROUNDS
        code.extend(LOOP_ROUNDS.to_le_bytes());
        code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jne back
        code.extend([0xf4]); // hlt
        code
    }

    fn checked(result: libc::c_int) -> Result<()> {
        if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
    }

    /// # Safety
    ///
    /// A number that is not negative must be a descriptor that nobody else owns.
    unsafe fn descriptor(result: libc::c_int) -> Result<OwnedFd> {
        checked(result)?;
        // SAFETY: the caller promises it.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }
}
