# For scripts that source it: commands in the current folder that are not repeated when they were done before.
# shellcheck shell=bash

repeat=no # becomes yes with the first command that has to run: all that follow depend on it

# done_before NAME COMMAND...: was exactly this command done, and is nothing before it new?
done_before() {
  [ $repeat = no ] && [ "$(cat ".$1.done" 2>/dev/null)" = "${*:2}" ]
}

# step NAME COMMAND...: run the command unless it was done before; what it prints goes to NAME.out
step() {
  local name=$1
  shift
  if done_before "$name" "$@"; then
    echo "$name: done before"
    return
  fi
  repeat=yes
  rm -f ".$name.done"
  echo "$name: $*"
  if ! "$@" >"$name.out" 2>&1; then
    tail -n 20 "$name.out"
    echo "$name failed; all that it said is in $PWD/$name.out"
    exit 1
  fi
  echo "$*" >".$name.done"
}

# list FILE...: where those of the files are that exist
list() {
  local file
  for file in "$@"; do
    if [ -e "$file" ]; then echo "    $PWD/$file"; fi
  done
}
