#!/bin/sh
# Fill the empty volumes of a deployment that does not run: deploy/restore.sh FOLDER
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
from=$1
here=$(dirname "$0")
[ -s "$from/store.rdb" ] && [ -s "$from/storage.tar" ] \
	|| { echo "$from holds no store.rdb and storage.tar" >&2; exit 1; }

inside() { docker compose -f "$here/compose.yaml" run --rm --no-deps -T "$@"; }

# A store with an append-only file looks at nothing else, so the copy becomes the file's first part.
inside store sh -c 'set -e; mkdir /data/appendonlydir; cd /data/appendonlydir
cat >appendonly.aof.1.base.rdb
echo "file appendonly.aof.1.base.rdb seq 1 type b" >appendonly.aof.manifest' <"$from/store.rdb"
inside server tar -x -C /storage <"$from/storage.tar"
echo "restored; start the deployment"
