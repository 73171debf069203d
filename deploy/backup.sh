#!/bin/sh
# Copy the store and the storage of a running deployment: deploy/backup.sh FOLDER
#
# The two must be of one moment: a record whose files are missing cannot be repaired, and files are
# deleted as soon as a newer record makes them superfluous. So the store takes no writes for as long
# as it needs to fork and storage needs to link its files, which are never written to again; copying
# them goes on beside the running deployment. PAUSE_S bounds the pause; one beyond lease_s (10 s) lets
# workers start anew, which costs time and loses nothing.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
to=$1
pause_s=${PAUSE_S:-15}
here=$(dirname "$0")

store() { docker compose -f "$here/compose.yaml" exec -T store valkey-cli "$@"; }
storage() { docker compose -f "$here/compose.yaml" exec -T server sh -c "$1"; }
persistence() { store INFO persistence | tr -d '\r' | grep "^$1:" | cut -d: -f2; }
wait_idle() {
	until [ "$(persistence rdb_bgsave_in_progress)$(persistence aof_rewrite_in_progress)" = 00 ]; do
		sleep 1
	done
}
clean_up() {
	store CLIENT UNPAUSE >/dev/null || true
	storage 'rm -rf /storage/.backup' || true
}

mkdir -p "$to"
wait_idle
storage 'rm -rf /storage/.backup && mkdir /storage/.backup'
trap clean_up EXIT

paused_at=$(date +%s)
store CLIENT PAUSE $((pause_s * 1000)) WRITE >/dev/null
# What was superseded just before the pause may still be going: then once more.
storage 'cd /storage; for try in 1 2 3; do
	find . -mindepth 1 -maxdepth 1 ! -name .backup -exec cp -al --target-directory=.backup {} + && exit
	rm -rf .backup/*
done; exit 1'
[ "$(store BGSAVE)" = "Background saving started" ] || { echo "the store is busy; try again" >&2; exit 1; }
[ $(($(date +%s) - paused_at)) -lt "$pause_s" ] \
	|| { echo "linking the files took longer than PAUSE_S=$pause_s; choose more" >&2; exit 1; }
store CLIENT UNPAUSE >/dev/null

wait_idle
[ "$(persistence rdb_last_bgsave_status)" = ok ] || { echo "the store could not be saved" >&2; exit 1; }
docker compose -f "$here/compose.yaml" exec -T store cat /data/dump.rdb >"$to/store.rdb"
storage 'tar -c -C /storage/.backup .' >"$to/storage.tar"
echo "store.rdb and storage.tar are in $to"
