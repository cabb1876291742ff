# Sourced. PYTHON chooses the interpreter of the virtual environments.

# install_into FOLDER FILE [FILE...]: a virtual environment, made on first use, that has what the first file requires.
# The other files are those that it includes: when one changes, everything is installed again.
install_into() {
    local folder=$1 stamp
    shift
    stamp=$(cat "$@" constraints.txt | cksum)
    [ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
    if [ "$(cat "$folder/$1.stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "installing $* into $folder"
        # a version that the file itself fixes, as requirements-tpu.txt does that of torch, is not constrained to another
        sed -n 's|^\([A-Za-z_-]*==\).*|^\1|p' "$1" >"$folder/fixed"
        grep -v -f "$folder/fixed" constraints.txt >"$folder/constraints.txt"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1" -c "$folder/constraints.txt"
        echo "$stamp" >"$folder/$1.stamp"
    fi
}

# install_environment FILE [FILE...]: the ordinary one, .venv, first on PATH.
install_environment() {
    install_into .venv "$@"
    PATH="$PWD/.venv/bin:$PATH"
    export PATH
}
