# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by ./run and ./check, which set $root: packages and build. Everything it says goes to stderr, so that stdout belongs to the program.

packages=(build-essential cmake ninja-build pkg-config libncurses-dev libsqlite3-dev libopenblas-dev libcurl4-openssl-dev libssl-dev
  libjansson-dev libutf8proc-dev libpcre2-dev zlib1g-dev libinih-dev libcmocka-dev python3-pip ca-certificates)

model_name=SmolLM2-135M-Instruct.Q4_1.gguf

say() { printf 'espalier: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# missing_packages NAME...: those that dpkg does not have installed, one a line (dpkg-query fails when it does not know one)
missing_packages() {
  local have name
  have=" $({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true; } | sed -n 's/^installed //p' | tr '\n' ' ')"
  for name; do [[ $have == *" $name "* ]] || echo "$name"; done
}

# need_packages NAME...: installs what is missing, or says how to and stops
need_packages() {
  command -v dpkg-query >/dev/null || { say "not a Debian or Ubuntu: taking it that these are installed: $*"; return 0; }
  local missing as=()
  mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
      as=(sudo)
    else
      say "these packages are missing and this account may not install them; run this once, then start again:"
      echo "  sudo apt-get install -y ${missing[*]}" >&2
      exit 1
    fi
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  local install=("${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
  local log; log=$(mktemp)
  if ! { compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null && "${install[@]}" >"$log" 2>&1 </dev/null; }; then
    say "reading the package lists"
    { "${as[@]}" apt-get update -qq && "${install[@]}"; } >"$log" 2>&1 </dev/null || {
      tail -n 15 "$log" >&2
      rm -f "$log"
      die "could not install them; this is the line to try by hand: apt-get install -y ${missing[*]}"
    }
  fi
  rm -f "$log"
}

# build DIR TARGET CMAKE-OPTION...: configures when needed and builds
build() {
  local dir=$1 target=$2 quiet=()
  shift 2
  [ -t 2 ] || quiet=(--quiet)
  local log=$dir/configure.log
  mkdir -p "$dir"
  cmake -S "$root" -B "$dir" -G Ninja "$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "cmake failed; all of it is in $log"; }
  [ -f "$dir/espalier" ] || say "building (a minute or two)"
  ninja -C "$dir" "${quiet[@]}" "$target" >&2 || die "the build failed"
}

default_home() { echo "${ESPALIER_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/espalier}"; }
