#!/bin/sh
# Makes .venv and installs into it exactly what lock.txt names, torch, and Cloister itself, editable.
# Run by `make setup`, from the repository's root: sh requirements/install.sh [PYTHON]
set -eu

python=${1:-python3}
log=.venv/install.log

fail() {
    printf '\n✗ %s\n' "$1" >&2
    exit 1
}

# Runs a command with its output in the log. While it runs, counts the packages that pip names.
quietly() {
    if [ -t 1 ]; then terminal=1; else terminal=0; fi
    { "$@" 2>&1 || echo "FAILED"; } | tee -a "$log" | awk -v terminal="$terminal" '
        function say(text) {
            if (terminal) printf "\r  %-60s", text; else print "  " text
            fflush()
        }
        /^(Collecting|Processing) /        { n++; if (terminal || n % 25 == 0) say(n " packages fetched") }
        /^Installing collected packages: / { if (n) say("unpacking ...") }
        $0 == "FAILED"                     { failed = 1 }
        END                                { if (terminal) printf "\r  %-60s\r", ""; exit failed }' || {
        tail -n 25 "$log" >&2
        fail "That did not work: the lines above say why, $log has them all. Then run the same command again."
    }
}

command -v "$python" >/dev/null 2>&1 ||
    fail "There is no \`$python\` here. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3"
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') ||
    fail "\`$python\` does not start. Name another: make setup PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Cloister needs Python 3.11 or newer; \`$python\` is $version. Name another: make setup PYTHON=python3.12"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "Setting up, once: it takes a few minutes and about 2 GB in .venv."
    echo "1/4 A virtual environment with Python $version"
    "$python" -m venv --clear .venv ||
        fail "Python could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
else
    echo "Bringing .venv up to date."
    echo "1/4 The virtual environment is there"
fi
: >"$log"

# --no-deps: the lock is complete, `pip check` proves it below.
pip() {
    .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"
}

echo "2/4 $(grep -c '^[a-z]' requirements/lock.txt) packages, each checked against its hash in requirements/lock.txt"
quietly pip install --progress-bar off --no-compile --no-deps --require-hashes -r requirements/lock.txt

# With its dependencies: those in the lock are there already, so that this adds at most its CUDA parts.
echo "3/4 torch (the largest: 200 MB, or several GB with CUDA)"
quietly pip install --progress-bar off --no-compile -r requirements/torch.txt

# What pip would do on one core. Some packages have files that are no Python: those are left, as pip leaves them.
compile_all() {
    .venv/bin/python -m compileall -q -j 0 .venv/lib || echo "(not all files could be compiled)"
}
quietly compile_all

echo "4/4 Cloister itself"
quietly pip install --progress-bar off --no-deps --no-build-isolation -e .
quietly pip check
echo "✓ Ready: .venv/bin/cloister --help"
