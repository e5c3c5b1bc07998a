#!/usr/bin/env bash
# Snakemake 9.27.1: a Snakefile may make rules in a Python loop, one per entry of a table. Expressions after `output:`, `params:` and
# `threads:` are evaluated when the rule is made, but the one after `shell:` when a job runs: by then the loop is over, and every rule runs
# the command of the last entry. Snakemake reports success, and each output has the last entry's content. The same expression behind
# `params:`, with a constant text after `shell:`, gives every rule its own command.
# Needs Python 3.11 or newer and 200 MB in the temporary folder. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check snakemake==9.27.1

cat >"$folder/Snakefile" <<'SNAKEFILE'
COMMANDS = {"first": "echo one >", "second": "echo two >"}


rule all:
    input:
        [f"{name}_{way}.txt" for name in COMMANDS for way in ("shell", "params")],


for name, command in COMMANDS.items():

    rule:
        name: f"{name}_shell"
        output: f"{name}_shell.txt",
        shell: command + " {output}"

    rule:
        name: f"{name}_params"
        output: f"{name}_params.txt",
        params: command=command,
        shell: "{params.command} {output}"
SNAKEFILE
(cd "$folder" && venv/bin/snakemake --cores 1 --quiet all >log 2>&1) || { tail -n 20 "$folder/log" && exit 1; }
seen=$(cd "$folder" && head first_shell.txt second_shell.txt first_params.txt second_params.txt | grep -v '^$' | paste -sd' ')
echo "$seen"
[ "$seen" = "==> first_shell.txt <== two ==> second_shell.txt <== two ==> first_params.txt <== one ==> second_params.txt <== two" ] ||
    { echo "changed; it was: two, two behind shell; one, two behind params" && exit 1; }
