"""The system-call filter of `strict` for engines that take a profile as JSON: Docker, Podman.

Their own filter is a list of what is allowed, so a list of what is denied would be a step back. This one allows what an
agent's programs need, and nothing that `seccomp.py` refuses.
"""

from __future__ import annotations

from errno import ENOSYS
from typing import Any

from hermitcrab.logic import seccomp

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_FILES = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
    fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
    lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat
    statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes
    write writev
"""
_WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 pipe pipe2 poll ppoll
    pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime io_setup io_submit io_getevents
    io_pgetevents io_cancel io_destroy
"""
_MEMORY = """
    brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall
    munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages get_mempolicy shmdt
"""
_PROCESSES = """
    arch_prctl capget capset execve execveat exit exit_group fork futex futex_waitv getcpu getegid geteuid getgid
    getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit get_robust_list getrusage getsid
    get_thread_area gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp setfsgid
    setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit set_robust_list setsid
    set_thread_area set_tid_address setuid sigaltstack sysinfo tgkill tkill uname vfork wait4 waitid
"""
_TIME = """
    alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime times
"""
_SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
    sendmsg sendto setsockopt shutdown getrandom
"""

ALLOWED = frozenset(f"{_FILES}{_WAITING}{_MEMORY}{_PROCESSES}{_TIME}{_SOCKETS}".split())


def strict_profile(machine: str) -> dict[str, Any] | None:
    """The profile for a machine (`uname -m`); None for one that there is no table for."""
    architecture = ARCHITECTURES.get(machine)
    if architecture is None or machine not in seccomp.MACHINES:
        return None
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        # One architecture: calls of the 32-bit one have numbers of their own, and none of them is allowed.
        "architectures": [architecture],
        "syscalls": [
            _rule(sorted(ALLOWED)),
            # "Not there" sends libc back to clone, whose flags can be read.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            _rule(["clone"], args=[_masked(seccomp.NEW_NAMESPACE_FLAGS)]),
            _rule(["unshare"], args=[_masked(seccomp.NEW_NAMESPACE_FLAGS | seccomp.NEW_TIME_NAMESPACE)]),
            *(_rule(["personality"], args=[_equal(value)]) for value in seccomp.PERSONALITIES),
            *(_rule(["socket", "socketpair"], args=[_equal(family)]) for family in seccomp.SOCKET_FAMILIES),
        ],
    }


def _rule(names: list[str], *, args: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **({"args": args} if args else {})}


def _masked(bits: int) -> dict[str, Any]:
    return {"index": 0, "value": bits, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}


def _equal(value: int) -> dict[str, Any]:
    return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}
