"""What the programs in a container may ask of the kernel, under each hardening profile: the same on every engine.

A list of what is let through, so that a call of a later kernel is refused until somebody has looked at it. It is what
Docker's and Podman's own filters let a container without capabilities do, less kernel surface that an agent's programs
do not need: keyrings, io_uring, further namespaces, sockets to the hypervisor, typing into terminals. Compilers,
interpreters, browsers, databases and, under `standard`, debuggers work.

`seccomp.py` makes of it the program that bubblewrap loads, `seccomp_profile.py` the profile for Docker and Podman.
"""

from __future__ import annotations

import hashlib
from functools import cache

from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.model.container import Hardening

NEW_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: a clone with one of these is refused."""
PERSONALITIES = (0x0, 0xFFFFFFFF)
"""Plain Linux, and "only tell me"."""
SOCKET_FAMILIES = (1, 2, 10, 16)
"""UNIX, INET, INET6 and NETLINK (interface lists). Never VSOCK, PACKET, ALG and the rest."""
TERMINAL_INJECTIONS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, as an ioctl's command: typing into somebody else's terminal."""

JUDGED = frozenset({"clone", "ioctl", "personality", "socket", "socketpair"})
"""Calls that are let through or refused by one argument, as said above."""

NOT_THERE = "clone3"
"""Its flags lie in memory, out of a filter's reach. "Not there" sends libc back to clone."""

_FILES = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
    fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
    lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat
    statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes
    write writev
"""
_WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 pipe pipe2 poll ppoll
    pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime io_setup io_submit io_getevents
    io_cancel io_destroy
"""
_MEMORY = """
    brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall
    munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
_PROCESSES = """
    arch_prctl capget capset execve execveat exit exit_group fork futex getcpu getegid geteuid getgid
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
_ALWAYS = frozenset(f"{_FILES}{_WAITING}{_MEMORY}{_PROCESSES}{_TIME}{_SOCKETS}".split())

_DEBUGGING = frozenset({"modify_ldt", "process_vm_readv", "process_vm_writev", "ptrace"})
"""Reach only the container's own processes of the same user."""

_SELDOM_NEEDED = frozenset(
    {
        *("mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink"),
        *("msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop"),
        *("shmat", "shmctl", "shmdt", "shmget"),
    }
)
"""Message queues, semaphores and shared memory by number: where exploits of the kernel prepare its heap, and what few
programs use."""


@cache
def allowed(hardening: Hardening) -> frozenset[str]:
    """Calls that are let through whatever their arguments are."""
    return _ALWAYS if hardening == "strict" else _ALWAYS | _DEBUGGING | _SELDOM_NEEDED


def refused(machine: str, hardening: Hardening) -> list[str]:
    """Calls of that machine's that are refused whatever their arguments are, for lack of permission."""
    return sorted(CALLS[machine].keys() - allowed(hardening) - JUDGED - {NOT_THERE})


@cache
def fingerprint(hardening: Hardening) -> str:
    """Eight hex digits that change when anything that is let through does."""
    rules = [NEW_NAMESPACE_FLAGS, PERSONALITIES, SOCKET_FAMILIES, TERMINAL_INJECTIONS, sorted(JUDGED)]
    return hashlib.sha256(repr([sorted(allowed(hardening)), *rules]).encode()).hexdigest()[:8]
