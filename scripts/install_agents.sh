#!/usr/bin/env bash
# Install the coding agents that tests/live/test_agents.py runs: Claude Code, Codex and OpenCode, of the versions below.
#
#   scripts/install_agents.sh              into AUXOT_AGENTS_DIR, by default ~/.auxot/agents
#   $AUXOT_AGENTS_DIR/bin/claude --version
#
# Needs npm, and Linux (glibc) or macOS. Your npm configuration holds: registry, proxy, certificates. What npm fetches
# are the programs themselves, one package a platform; the packages with the usual names are Node launchers around them,
# with install scripts. Node itself is therefore not needed to run them. Does nothing when these versions are there.
set -euo pipefail

CLAUDE_CODE=2.1.329
CODEX=0.169.0
OPENCODE=1.18.33

folder="${AUXOT_AGENTS_DIR:-$HOME/.auxot/agents}"

case "$(uname -s)" in
    Linux) os=linux ;;
    Darwin) os=darwin ;;
    *) echo "error: no agents for $(uname -s)" >&2 && exit 1 ;;
esac
case "$(uname -m)" in
    x86_64 | amd64) cpu=x64 opencode_cpu=x64-baseline ;; # baseline: runs on processors without AVX2 as well
    aarch64 | arm64) cpu=arm64 opencode_cpu=arm64 ;;
    *) echo "error: no agents for $(uname -m)" >&2 && exit 1 ;;
esac

wanted="claude-code $CLAUDE_CODE, codex $CODEX, opencode $OPENCODE, $os-$cpu"
if [[ -f $folder/installed && $(<"$folder/installed") == "$wanted" ]]; then
    exit 0
fi
command -v npm >/dev/null || {
    echo "error: npm is not installed (on Debian and Ubuntu: apt-get install npm)" >&2
    exit 1
}

echo "Installing $wanted into $folder: about 950 MB."
mkdir -p "$folder"
cd "$folder"
rm -rf installed bin node_modules package.json package-lock.json
echo '{"private": true}' >package.json # else npm would look for one in the folders above
npm install --prefix . --ignore-scripts --no-audit --no-fund --no-save --loglevel error \
    "@anthropic-ai/claude-code-$os-$cpu@$CLAUDE_CODE" \
    "@openai/codex@$CODEX-$os-$cpu" \
    "opencode-$os-$opencode_cpu@$OPENCODE" || {
    echo "error: npm could not fetch the agents: is its registry reachable from here?" >&2
    exit 1
}

mkdir bin
cd bin
ln -s "../node_modules/@anthropic-ai/claude-code-$os-$cpu/claude" claude
ln -s ../node_modules/@openai/codex/vendor/*/bin/codex codex
ln -s "../node_modules/opencode-$os-$opencode_cpu/bin/opencode" opencode
for agent in claude codex opencode; do
    [[ -f $agent ]] || { echo "error: $agent is not where it was in its package" >&2 && exit 1; }
done
chmod +x -- *
echo "$wanted" >../installed
