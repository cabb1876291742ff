# Sourced: makes .venv beside the project on first use, installs the given requirement files, puts it on PATH.
# PYTHON chooses the interpreter.
install_environment() {
    local stamp
    stamp=$(cat "$@" constraints.txt | cksum)
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    if [ "$(cat ".venv/$1.stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "installing $* into .venv"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" -c constraints.txt
        echo "$stamp" >".venv/$1.stamp"
    fi
    PATH="$PWD/.venv/bin:$PATH"
    export PATH
}
