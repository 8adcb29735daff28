# What the guests of this directory are made of; read by their scripts, with `.`.
#
# The kernel is Debian's for clouds, unpacked from its package and not installed. Needs apt-get, dpkg and busybox; neither root nor
# a mount.
#
# A function that has variables is a shell of its own, so that they are not those of the script.

# Programs of the system are used, and copied, by those who do not have them in their path.
PATH=$PATH:/usr/sbin:/sbin

# need PROGRAM...: fails, and says what is missing, where this machine does not have all of them.
need() (
    missing=
    for program; do
        command -v "$program" >/dev/null || missing="$missing $program"
    done
    test -z "$missing" || { echo "$0: not installed:$missing" >&2; exit 1; }
)

# The package of the newest kernel that apt knows.
kernel() { apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1; }

# release WORK: that of the kernel unpacked there.
release() { basename "$1"/kernel/lib/modules/*; }

# unpack_kernel CACHE WORK: unpacks the kernel into WORK/kernel.
#
# A package that is in CACHE is taken without asking apt: that needs no network, and each run has the kernel of the one before.
unpack_kernel() (
    need dpkg busybox
    package=$(find "$1" -maxdepth 1 -name 'linux-image-*-cloud-amd64.deb' | sort -V | tail -n 1)
    if test -z "$package"; then
        need apt-cache apt-get
        name=$(kernel)
        if test -z "$name" && test "$(id -u)" = 0; then
            apt-get update -q >/dev/null
            name=$(kernel)
        fi
        test -n "$name" || { echo "no kernel package is known to apt: apt-get update" >&2; exit 1; }
        package=$1/$name.deb
        # Made whole elsewhere: another script may look for it now.
        (cd "$2" && apt-get download -q "$name" >&2 && mv "$name"_*.deb "$package")
    fi
    dpkg -x "$package" "$2/kernel"
    busybox depmod -b "$2/kernel" "$(release "$2")"
)

# copy_program FILE ROOT PATH: copies a program of this machine to ROOT/PATH, and the libraries it is linked with.
copy_program() (
    mkdir -p "$2$(dirname "$3")"
    cp -L "$1" "$2$3"
    for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
        mkdir -p "$2$(dirname "$library")"
        cp -L "$library" "$2$library"
    done
)

# copy_modules WORK ROOT MODULE...: copies modules of WORK/kernel, and those they need, to where the `modprobe` of ROOT finds them.
copy_modules() (
    release=$(release "$1")
    from=$1/kernel/lib/modules/$release
    root=$2
    to=$root/lib/modules/$release
    shift 2
    mkdir -p "$to"
    for module; do
        # A line is "PATH: PATH...": the module, and all that it needs.
        files=$(sed -n "s|^\(.*/$module\.ko\):|\1|p" "$from/modules.dep")
        test -n "$files" || { echo "the kernel $release has no module $module" >&2; exit 1; }
        for file in $files; do
            mkdir -p "$to/$(dirname "$file")"
            cp "$from/$file" "$to/$file"
        done
    done
    cp "$from/modules.builtin" "$to/"
    busybox depmod -b "$root" "$release"
)

# make_initrd ROOT: writes what is in ROOT to stdout, as an archive for the kernel.
make_initrd() { (cd "$1" && find . | busybox cpio -o -H newc 2>/dev/null); }
