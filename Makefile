# `make demo` and `make test` work as the first command on a machine with python3 >= 3.11 and make.
PYTHON ?= python3
bin := .venv/bin
uv := $(shell command -v uv 2>/dev/null)
project := setup.cfg pyproject.toml

.PHONY: demo test check bench studies clean
.DELETE_ON_ERROR:

demo: .venv/installed            ## one InstructEdit editor beside three baselines, on the bundled world
	$(bin)/editkit run "baselines=[mend,ft_l,ft_m]"

test: .venv/installed-dev        ## every test
	$(pytest)

check: .venv/installed-dev       ## what CI runs: format, lint, types, tests
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(pytest)

bench: .venv/installed-dev       ## speed and memory, beside the obvious way and what the machine can do
	$(bin)/python experiments/speed.py --out outputs/speed

studies: .venv/installed-dev     ## every table and figure of the studies, within an hour on two cores; goes on where it stopped
	$(bin)/python experiments/all.py scale=tiny

clean:                           ## remove the environment; outputs stay
	rm -rf .venv

# Tests must neither wait for an unreachable network nor fight over cores: two processes of one thread each.
offline := HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
pytest := $(offline) $(bin)/python -m pytest --numprocesses 2 --dist loadfile

# The stamps are newer than the files that name the dependencies: a second call installs nothing.
.venv/installed: $(project) | $(bin)/python
	$(call install,.)
	@$(compile)
	@touch $@

.venv/installed-dev: $(project) | $(bin)/python
	$(call install,.[dev])
	@$(compile)
	@touch .venv/installed $@

$(bin)/python:
ifdef uv
	uv venv --quiet --python ">=3.11" .venv
else
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("python3 is %d.%d, but editkit needs 3.11 or newer: make PYTHON=/path/to/python3.11 …" % v[:2])'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python3 cannot make an environment: install its venv module (Debian: python3-venv) or uv" >&2; exit 1; }
endif

# Of ten thousand files in the dependencies a run imports a few hundred: compiling only these halves the installation.
compile = PYTHONDONTWRITEBYTECODE= $(bin)/python -c "import editkit.run, wandb, transformers as t; \
	t.AutoTokenizer, t.AutoModelForCausalLM, t.LlamaForCausalLM, t.GPT2LMHeadModel"

ifdef uv
install = uv pip install --quiet --python $(bin)/python --editable "$(1)"
else
install = $(bin)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable "$(1)"
endif
