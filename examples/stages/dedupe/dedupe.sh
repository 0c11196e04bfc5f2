#!/bin/sh
set -eu
fail() { printf '{"event": "error", "what": "%s", "fix": "%s", "exit_code": 2}\n' "$1" "$2"; exit 2; }
for word in "$@"; do
  case $word in
    --rows=*) rows=${word#*=} ;;
    --output=*) output=${word#*=} ;;
    --exact) exact=1 ;;
    --no-exact) exact=0 ;;
    *) fail "dedupe does not know $word" "see its interface.json" ;;
  esac
done
[ -f "$rows" ] || fail "the rows are not one file" "name a file, such as data.jsonl"
LC_ALL=C awk -v total="$(wc -l <"$rows")" -v exact="$exact" -v out="$output/rows.jsonl" '
  { row = $0; if (!exact) { row = tolower(row); gsub(/[[:punct:][:space:]]+/, " ", row) } }
  !seen[row]++ { print >out; kept++ }
  NR % 10000 == 0 {
    printf "{\"event\": \"progress\", \"label\": \"rows\", \"done\": %d, \"total\": %d}\n", NR, total; fflush()
  }
  END { printf "{\"event\": \"metric\", \"rows\": %d, \"kept\": %d}\n", NR, kept }' "$rows"
