# What a person would type; `make demo` and `make test` need nothing but Python >= 3.10, pip and make.
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
EM := bundles/em_membrane_segmentation
RUN := $(BIN)/python -W ignore -m monai.bundle run --bundle_root $(EM)
NUCLEI := bundles/nuclei_segmentation

.PHONY: setup demo test test-all test-label test-export label lint docs bench clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 10) else 'Python 3.10 or newer is needed')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[microscopy,dicom,volumes,large,cluster,tracking,dev]'
	touch $@

demo: setup
	$(BIN)/python -W ignore -m monai.bundle run --bundle_root $(NUCLEI) --config_file $(NUCLEI)/configs/inference.yaml \
	  --input $(NUCLEI)/samples --output_dir demo/nuclei --overwrite true
	$(BIN)/python -m monai_unet.datasets prepare em_phantom --output demo/data
	$(RUN) --config_file "['$(EM)/configs/train.yaml', '$(EM)/configs/compact.yaml']" --dataset_dir demo/data \
	  --output_dir demo/model --features "[16, 32, 64, 128, 256]" --tile_size 196 --max_epochs 4 --steps_per_epoch 100 \
	  --val_interval 2
	$(RUN) --config_file "['$(EM)/configs/inference.yaml', '$(EM)/configs/evaluate.yaml']" --dataset_dir demo/data \
	  --ckpt_path demo/model/model.pt --output_dir demo/evaluation
	$(RUN) --config_file $(EM)/configs/inference.yaml --input demo/data/slices/train-volume-14.png \
	  --ckpt_path demo/model/model.pt --output_dir demo/prediction
	@echo
	@echo "Nuclei:      demo/nuclei/pictures/*.png, and *.geojson for QuPath: with the shipped weights"
	@echo "Pictures:    demo/evaluation/pictures/*.png (image, label, probability, outlines)"
	@echo "Scores:      demo/evaluation/scores.csv"
	@echo "Prediction:  demo/prediction/*_probability.tif and *_label.tif"
	@echo "MLflow:      $(BIN)/mlflow ui, then open http://127.0.0.1:5000"

# two processes of one thread each: most of the tests' time is not spent in PyTorch
test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: setup
	$(BIN)/python -m pytest -m ""

# label BUNDLE=cell_segmentation STUDIES=my/images [PORT=8000] [WEIGHTS=demo/model/model.pt]
label:
	@$(PYTHON) label/serve.py --bundle "$(BUNDLE)" --studies "$(STUDIES)" --port "$(or $(PORT),8000)" --weights "$(WEIGHTS)"

test-label: setup
	$(PYTHON) label/serve.py --build
	$(BIN)/python -m pytest -m label tests/label

# bioimageio.core 0.11.0 does not run with the pydantic of constraints.txt: it lies in a folder of its own, with an older one
test-export: setup
	grep -v '^pydantic' constraints.txt > .venv/judge.txt
	$(BIN)/pip install --quiet --target .judge --constraint .venv/judge.txt 'bioimageio.core==0.11.0' 'pydantic<2.13'
	PYTHONPATH=.judge $(BIN)/python -m pytest -m slow tests/bundles/test_export.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# site/index.html; a dead link within the site, or a docstring that does not parse, ends it; links elsewhere are not checked
docs: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -c docs -d build/docs . site
	@echo "site/index.html"

# each prints its table, writes benchmarks/results/*.json; the last one writes docs/benchmarks.md from them
bench: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[peers]'
	for claim in weight_map elastic inference whole_step free_speed start_up workers; do \
	  date "+%T benchmarks.$$claim"; $(BIN)/python -W ignore -m benchmarks.$$claim || exit 1; done
	date "+%T benchmarks.document"; $(BIN)/python -m benchmarks.document

clean:
	rm -rf .venv .label .judge demo site build/docs
