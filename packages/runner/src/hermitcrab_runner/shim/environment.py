"""What the foreign runner finds in its environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hermitcrab_runner.providers.claude_options import foreign_variables


def environment_of(variables: Mapping[str, str], *, port: int | None, root: bool) -> dict[str, str]:
    """The container's own without what is the shim's, and with the way out through loopback `port`."""
    ours = set(foreign_variables(variables))
    found = {name: value for name, value in variables.items() if name not in ours}
    if port is not None:
        here = f"http://127.0.0.1:{port}"
        found |= {
            "HTTP_PROXY": here,
            "HTTPS_PROXY": here,
            "NO_PROXY": "127.0.0.1,localhost",
            "ANTHROPIC_BASE_URL": f"{here}/anthropic",
            # The gateway puts the real one in. A harness only wants to see something.
            "ANTHROPIC_API_KEY": "placeholder",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
    if root:
        # Claude Code refuses to work as root outside of a sandbox. This one is a sandbox.
        found["IS_SANDBOX"] = "1"
    return found
