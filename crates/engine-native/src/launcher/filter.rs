//! The system calls that a machine may not make, each with its reason.
//!
//! A machine's root holds few capabilities and none outside its user namespace, so most of these would
//! fail anyway: the filter keeps the kernel code behind them out of reach.

use nullspace_sys::seccomp::{Filter, Rule, Test};

/// The first call number that was not looked at when this table was written (Linux 6.18).
const FIRST_UNKNOWN: u32 = 470;

/// `CLONE_NEW*`: a nested user namespace would give back every capability inside it.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Families that ordinary programs use; the rest are rarely looked at kernel code.
const SOCKET_FAMILIES: &[u32] = &[
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];

/// Refused always, with `EPERM`.
#[rustfmt::skip]
const REFUSED: &[(i64, &str)] = &[
    (libc::SYS_mount, "changes the machine's file system from under the guest"),
    (libc::SYS_umount2, "would uncover what is masked"),
    (libc::SYS_pivot_root, "as mount"),
    (libc::SYS_move_mount, "as mount"),
    (libc::SYS_open_tree, "as mount"),
    (libc::SYS_fsopen, "as mount"),
    (libc::SYS_fsconfig, "as mount"),
    (libc::SYS_fsmount, "as mount"),
    (libc::SYS_fspick, "as mount"),
    (libc::SYS_mount_setattr, "as mount"),
    (libc::SYS_setns, "enters other namespaces"),
    (libc::SYS_bpf, "loads programs into the kernel"),
    (libc::SYS_perf_event_open, "large, with a history of escapes"),
    (libc::SYS_userfaultfd, "makes kernel races easy to win"),
    (libc::SYS_io_uring_setup, "large, bypasses this filter for the calls it carries"),
    (libc::SYS_io_uring_enter, "as io_uring_setup"),
    (libc::SYS_io_uring_register, "as io_uring_setup"),
    (libc::SYS_add_key, "keyrings are not namespaced by machine"),
    (libc::SYS_request_key, "as add_key"),
    (libc::SYS_keyctl, "as add_key"),
    (libc::SYS_kexec_load, "replaces the host's kernel"),
    (libc::SYS_kexec_file_load, "as kexec_load"),
    (libc::SYS_init_module, "loads code into the host's kernel"),
    (libc::SYS_finit_module, "as init_module"),
    (libc::SYS_delete_module, "as init_module"),
    (libc::SYS_reboot, "the host's"),
    (libc::SYS_swapon, "the host's"),
    (libc::SYS_swapoff, "the host's"),
    (libc::SYS_acct, "the host's"),
    (libc::SYS_settimeofday, "the host's clock"),
    (libc::SYS_clock_settime, "the host's clock"),
    (libc::SYS_clock_adjtime, "the host's clock"),
    (libc::SYS_adjtimex, "the host's clock"),
    (libc::SYS_syslog, "the host's kernel log"),
    (libc::SYS_quotactl, "the host's file systems"),
    (libc::SYS_quotactl_fd, "the host's file systems"),
    (libc::SYS_open_by_handle_at, "opens files outside the root by handle"),
    (libc::SYS_name_to_handle_at, "the other half of open_by_handle_at"),
    (libc::SYS_fanotify_init, "watches whole file systems"),
    (libc::SYS_kcmp, "compares kernel objects of other processes"),
    (libc::SYS_lookup_dcookie, "profiling of the host"),
    (libc::SYS_vhangup, "terminals of the host"),
    (libc::SYS_mbind, "places memory on the host's nodes"),
    (libc::SYS_move_pages, "as mbind"),
    (libc::SYS_migrate_pages, "as mbind"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_iopl, "the host's hardware"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_ioperm, "the host's hardware"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_modify_ldt, "old, with a history of escapes"),
];

/// The filter of every machine.
pub(super) fn build() -> Filter {
    let always = |call| Rule {
        call,
        test: Test::Always,
        errno: libc::EPERM,
    };
    let mut rules: Vec<Rule> = REFUSED.iter().map(|(call, _)| always(*call)).collect();
    rules.extend([
        Rule {
            call: libc::SYS_clone,
            test: Test::AnyBit(0, NEW_NAMESPACES),
            errno: libc::EPERM,
        },
        Rule {
            call: libc::SYS_unshare,
            test: Test::AnyBit(0, NEW_NAMESPACES),
            errno: libc::EPERM,
        },
        // Its flags are behind a pointer that a filter cannot read: the C library falls back to clone.
        Rule {
            call: libc::SYS_clone3,
            test: Test::Always,
            errno: libc::ENOSYS,
        },
        Rule {
            call: libc::SYS_socket,
            test: Test::NoneOf(0, SOCKET_FAMILIES),
            errno: libc::EAFNOSUPPORT,
        },
    ]);
    Filter::new(&rules, FIRST_UNKNOWN)
}
