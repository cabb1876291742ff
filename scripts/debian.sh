# Sourced. install_debian PACKAGE...: from Debian's archive, as root or through sudo.
install_debian() {
    local as_root=() log
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    install() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }
    log=$(mktemp)
    echo "installing $*"
    # package lists may be missing or out of date: they are fetched once the packages cannot be had without
    if ! { install "$@" || { "${as_root[@]}" apt-get update -qq && install "$@"; }; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "$(basename "$0"): error: apt-get could not install $* (see above); it needs Debian and root" >&2
        return 1
    fi
    rm -f "$log"
}
