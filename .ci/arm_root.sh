#!/usr/bin/env bash
# Make a folder in which an ARM64 Python runs under qemu-user: Debian's arm64 packages unpacked (no chroot, no binfmt), and
# manylinux wheels beside them. Prints nothing on success; ROOT and SITE below are what arm_tests.sh uses.
#   usage: arm_root.sh FOLDER
set -euo pipefail
folder=$1
mkdir -p "$folder"
root=$folder/root
site=$folder/site

need=()
for tool in aarch64-linux-gnu-gcc qemu-aarch64 debootstrap; do
  command -v "$tool" >/dev/null || need+=("$tool")
done
if [ ${#need[@]} -gt 0 ]; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user debootstrap
fi

if [ ! -x "$root/usr/bin/python3.11" ]; then
  rm -rf "$root"
  mirror=$(sed -n 's|^\(deb\|URIs:\) *\(\[[^]]*\] *\)\?\(http[^ ]*debian\)/\? .*|\3|p; s|^URIs: *\(http[^ ]*\)|\1|p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v security | head -n 1 || true)
  # --foreign only downloads; unpacking every package by hand needs no emulation and no root services
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,python3-dev bookworm "$root" \
    "${mirror:-http://deb.debian.org/debian}"
  for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg -x "$package" "$root"
  done
fi

if [ ! -f "$site/.complete" ]; then
  rm -rf "$site"
  python3 -m pip install -q --target "$site" --only-binary=:all: --implementation cp --python-version 3.11 \
    --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
    numpy numba cffi pytest hypothesis safetensors tokenizers rich
  touch "$site/.complete"
fi
