# bisup: `make` lists the targets. Sources are found by folder; every folder's place is in ARCHITECTURE.md.
.DEFAULT_GOAL := help
SHELL := /bin/bash

BUILD     ?= release
SANITIZER ?=
CUDA      ?= 0
MODEL     ?= models/demo
PORT      ?= 8080
ARGS      ?=

# ---- Debian 12 packages: the only install lists of the project -----------------------------------
PACKAGES_RUN   := libmicrohttpd12 libuv1 libcjson1 libsentencepiece0 libpcre2-8-0 libutf8proc2 libinih1 libopenblas0-serial
PACKAGES_BUILD := gcc g++ make pkg-config libmicrohttpd-dev libuv1-dev libcjson-dev libsentencepiece-dev \
                  libpcre2-dev libutf8proc-dev libinih-dev uthash-dev libopenblas-serial-dev
PACKAGES_TEST  := libcmocka-dev python3 python3-jinja2 python3-venv curl git wrk
PACKAGES_LINT  := clang-format clang-tidy cppcheck
PACKAGES_FUZZ  := clang libclang-rt-14-dev
PACKAGES_IMAGE := buildah debootstrap

ifneq ($(CUDA),0)
$(error CUDA is '$(CUDA)': there is no CUDA backend yet; build with CUDA=0)
endif

# ---- Modes ------------------------------------------------------------------------------------------
MODE := $(BUILD)$(if $(SANITIZER),-$(SANITIZER))
OUT  := build/$(MODE)
CC   ?= cc
CXX  ?= c++

WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wpointer-arith -Wvla
WARN_C   := -Wstrict-prototypes -Wmissing-prototypes
# No value-changing floating-point option anywhere: results must not depend on the build.
# Not -Werror with sanitizers: gcc then warns of truncation it otherwise knows to be impossible.
COMMON   := -I. -g -fno-omit-frame-pointer -ffp-contract=off -fno-math-errno -fvisibility=hidden -MMD -MP \
            $(WARN) $(if $(CI),$(if $(SANITIZER),,-Werror))
ifeq ($(BUILD),debug)
COMMON   += -O1 -DBISUP_DEBUG
else ifeq ($(BUILD),release)
COMMON   += -O2 -D_FORTIFY_SOURCE=2 -fstack-protector-strong
else
$(error BUILD is '$(BUILD)': use BUILD=debug or BUILD=release)
endif
ifneq ($(SANITIZER),)
ifeq ($(filter $(SANITIZER),address undefined thread fuzzer),)
$(error SANITIZER is '$(SANITIZER)': use address (with undefined), undefined or thread)
endif
SAN_address   := address,undefined
SAN_undefined := undefined
SAN_thread    := thread
SAN_fuzzer    := fuzzer-no-link,address,undefined# set by 'make fuzz'
SAN_FLAGS     := -fsanitize=$(SAN_$(SANITIZER)) -fno-sanitize-recover=all
endif
comma    := ,
PKG      := libmicrohttpd libuv libcjson sentencepiece libpcre2-8 libutf8proc
PKG_CFLAGS = $(shell pkg-config --cflags $(PKG) 2>/dev/null)
PKG_LIBS   = $(shell pkg-config --libs $(PKG) 2>/dev/null) -linih
CFLAGS_ALL   = -std=c11 -D_GNU_SOURCE $(COMMON) $(WARN_C) $(PKG_CFLAGS) $(SAN_FLAGS) $(CFLAGS)
CXXFLAGS_ALL = -std=c++17 $(COMMON) $(PKG_CFLAGS) $(SAN_FLAGS) $(CXXFLAGS)
# The quantizer's matrix products: OpenBLAS without threads of its own, because ours split the work and a server
# should not carry idle ones. Where that build of it is not in Debian's place, any OpenBLAS will do.
BLAS_DIR    := $(firstword $(wildcard /usr/lib/*/openblas-serial))
BLAS_LIBS   := $(if $(BLAS_DIR),-L$(BLAS_DIR) -Wl$(comma)-rpath$(comma)$(BLAS_DIR)) -lopenblas
LIBS         = $(PKG_LIBS) $(BLAS_LIBS) -lpthread -lm -lstdc++

# ---- Sources -----------------------------------------------------------------------------------------
FOLDERS  := common config kernels kernels/cpu runtime runtime/model runtime/tokenizer runtime/template quantizer evaluation server
LIB_SRC  := $(foreach f,$(FOLDERS),$(wildcard $(f)/*.c $(f)/*.cc))
CLI_SRC  := $(wildcard cli/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
LIB_OBJ  := $(addprefix $(OUT)/,$(addsuffix .o,$(LIB_SRC)))
CLI_OBJ  := $(addprefix $(OUT)/,$(addsuffix .o,$(CLI_SRC)))
UNIT_BIN := $(patsubst tests/unit/%.c,$(OUT)/tests/unit/%,$(UNIT_SRC))
TEST_OBJ := $(addprefix $(OUT)/,$(addsuffix .o,$(wildcard tests/support/*.c)))
BISUP    := $(OUT)/bisup

# Kernel files carry their instruction set in their name; nothing else is built above the baseline.
ARCH := $(shell uname -m)
ifeq ($(ARCH),x86_64)
%_avx2.c.o:   ISA := -mavx2 -mfma -mf16c
%_avx512.c.o: ISA := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512
endif
# The quantizer's loops are plain C that the compiler is to vectorize; "omp simd" needs no library. Nobody reads the
# floating-point exception flags, so comparisons may be done for lanes that do not need them: the values are the same.
$(OUT)/quantizer/%.o $(OUT)/double/quantizer/%.o: EXTRA := -fopenmp-simd -fno-trapping-math $(if $(filter release,$(BUILD)),-O3)
# For checking gradients by finite differences: the same sources in double.
$(OUT)/tests/unit/test_gradients.c.o: EXTRA := -DQZ_DOUBLE
DOUBLE_SRC := $(filter $(foreach s,block compute divergence end_to_end fake learned loops% pass% simulate training tune,quantizer/$(s).c),$(wildcard quantizer/*.c))
DOUBLE_OBJ := $(patsubst %,$(OUT)/double/%.o,$(DOUBLE_SRC))

# ---- Targets -----------------------------------------------------------------------------------------
.PHONY: help all deps deps-list need-build need-test run test bench reproduce lint format fuzz load image clean
help: ## this list
	@echo "bisup: an LLM inference server. Start with 'make run' or 'make test'."; echo
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'
	@echo; echo "  BUILD=release|debug  SANITIZER=address|undefined|thread  CUDA=0  MODEL=folder  PORT=8080  ARGS='more flags'"

all: $(BISUP) ## build the program (build/<mode>/bisup)

deps: ## install the Debian packages for building, running and testing
	@tools/install_packages.sh $(PACKAGES_BUILD) $(PACKAGES_RUN) $(PACKAGES_TEST)

deps-lint: ## install what lint and fuzz need as well
	@tools/install_packages.sh $(PACKAGES_BUILD) $(PACKAGES_LINT) $(PACKAGES_FUZZ)

deps-image: ## install what building the container image without Docker needs
	@tools/install_packages.sh $(PACKAGES_IMAGE)

deps-list: # prints one of the lists: make deps-list SET=RUN|BUILD|TEST|LINT|FUZZ|IMAGE (used by the Dockerfile)
	@echo $(PACKAGES_$(SET))

need-build:
	@tools/install_packages.sh --if-missing $(PACKAGES_BUILD) $(PACKAGES_RUN)
need-test: need-build
	@tools/install_packages.sh --if-missing $(PACKAGES_TEST)

run: need-build ## build, then serve MODEL (the demo model) on PORT
	@$(MAKE) --no-print-directory -s -j$$(nproc) all
	@exec $(BISUP) serve $(MODEL) --port $(PORT) $(ARGS)

test: need-test ## build and run every test; ends with "N passed, N failed"
	@$(MAKE) --no-print-directory -s -j$$(nproc) all unit-programs
	@tests/run.sh $(OUT)

unit-programs: $(UNIT_BIN)
.PHONY: unit-programs deps-lint deps-image

$(BISUP): $(CLI_OBJ) $(OUT)/libbisup.a
	@echo "link $@"
	@$(CC) $(SAN_FLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(OUT)/libbisup.a: $(LIB_OBJ)
	@rm -f $@ && ar rcs $@ $^

$(OUT)/tests/unit/%: $(OUT)/tests/unit/%.c.o $(TEST_OBJ) $(OUT)/libbisup.a
	@echo "link $@"
	@$(CC) $(SAN_FLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

# Before the library, whose float versions of the same functions are then not taken.
$(OUT)/tests/unit/test_gradients: $(OUT)/tests/unit/test_gradients.c.o $(DOUBLE_OBJ) $(OUT)/libbisup.a
	@echo "link $@"
	@$(CC) $(SAN_FLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(OUT)/double/%.c.o: %.c Makefile
	@mkdir -p $(@D)
	@echo "cc -DQZ_DOUBLE $<"
	@$(CC) $(CFLAGS_ALL) -DQZ_DOUBLE $(ISA) $(EXTRA) -c -o $@ $<

$(OUT)/%.c.o: %.c Makefile
	@mkdir -p $(@D)
	@echo "cc $<"
	@$(CC) $(CFLAGS_ALL) $(ISA) $(EXTRA) -c -o $@ $<

$(OUT)/%.cc.o: %.cc Makefile
	@mkdir -p $(@D)
	@echo "c++ $<"
	@$(CXX) $(CXXFLAGS_ALL) -c -o $@ $<

bench: need-build ## tokens/s of prefill and decode: demo model and a 110M shape with random weights
	@$(MAKE) --no-print-directory -s -j$$(nproc) all
	@$(BISUP) bench $(MODEL) $(ARGS)
	@$(BISUP) bench --shape tools/shapes/110m.json $(ARGS)

reproduce: need-test ## measure all quantization methods and write docs/quality.md (an hour; goes on where it was)
	@$(MAKE) --no-print-directory -s -j$$(nproc) all
	@tools/reproduce/run.sh $(BISUP) $(ARGS)

lint: ## formatting, include rules, clang-tidy, cppcheck
	@tools/install_packages.sh --if-missing $(PACKAGES_BUILD) $(PACKAGES_LINT)
	@tools/lint.sh

format: ## rewrite the sources with clang-format
	@git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs -r clang-format -i

FUZZ_BIN := $(patsubst tests/fuzz/%.c,$(OUT)/tests/fuzz/%,$(FUZZ_SRC))
fuzz: ## build the fuzz targets with clang and run each for SECONDS_EACH (default 60) on its corpus
	@tools/install_packages.sh --if-missing $(PACKAGES_BUILD) $(PACKAGES_FUZZ)
	@$(MAKE) --no-print-directory -s -j$$(nproc) BUILD=debug SANITIZER=fuzzer CC=clang CXX=clang++ fuzz-programs
	@tests/fuzz/run.sh build/debug-fuzzer $(or $(SECONDS_EACH),60)

fuzz-programs: $(FUZZ_BIN)
.PHONY: fuzz-programs

$(OUT)/tests/fuzz/%: $(OUT)/tests/fuzz/%.c.o $(OUT)/libbisup.a
	@echo "link $@"
	@$(CXX) $(SAN_FLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ $(LIBS)

load: need-test ## load-test a running server at PORT with wrk: /health, a chat, a streamed chat
	@tests/load/run.sh $(PORT)

image: deps-image ## build the container image without a Docker engine and try it
	@tests/image/run.sh

clean: ## remove everything built
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(DOUBLE_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(patsubst %,%.c.d,$(UNIT_BIN))
