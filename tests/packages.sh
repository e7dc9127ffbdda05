# Debian's packages, unpacked where they do no harm: nothing is installed, and root is not needed. To be sourced.

# fetch DIR PACKAGE...: downloads these packages and unpacks them into DIR.
fetch() {
    local dir=$1 debs
    shift
    mkdir -p "$dir"
    debs=$(mktemp -d)
    (cd "$debs" && apt-get -o APT::Sandbox::User=root download -qq "$@" >/dev/null)
    find "$debs" -name '*.deb' -exec dpkg -x {} "$dir" \;
    rm -rf "$debs"
}

# lacking PACKAGE...: these and what they need, as far as this machine lacks it. Not what only a machine of one's
# own starts: a program that is merely run needs neither systemd nor udev.
lacking() {
    apt-get install -s -qq --no-install-recommends "$@" | awk '$1 == "Inst" {print $2}' |
        grep -vE '^(systemd|udev|dbus|rdma-core|lib(nss|pam|systemd|udev))'
}

# missing_libraries FILE...: shared libraries that are not found, as the packages that Debian's naming rule says.
missing_libraries() {
    ldd "$@" 2>/dev/null | awk '/not found/ {print $1}' | sort -u | package_of_library
}

# libfoo_bar.so.1 is in libfoo-bar1, libfoo5.so.1 in libfoo5-1.
package_of_library() {
    tr _ - | sed -E 's/([0-9])\.so\./\1-/; s/\.so\.//'
}
