"""Data for the studies: what is read is what was written; what is wrong is said in a sentence."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import dump_svmlight_file

from dargmin.studies.data import BUILT_IN, DataError, class_indices, load, regression_target

TABLE = pd.DataFrame(
    {"a": [1.0, 2.0, 4.0, 0.5], "b": [3.0, 1.0, 7.0, -2.0], "y": [10.0, 20.0, 15.0, 0.0]}
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def standardised(columns):
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_is_read_and_standardised(here, separator):
    TABLE.to_csv("table.csv", sep=separator, index=False)
    data = load("table.csv", "y")
    assert data.features == ("a", "b")
    assert_allclose(data.X, standardised(TABLE[["a", "b"]].to_numpy()), rtol=1e-14)
    assert_allclose(data.y, TABLE["y"])


def test_csv_parquet_and_libsvm_files_hold_the_same_data(here):
    TABLE.to_csv("table.csv", index=False)
    TABLE.to_parquet("table.parquet")
    dump_svmlight_file(TABLE[["a", "b"]], TABLE["y"], "table.svm", zero_based=False)
    csv, parquet = load("table.csv", "y"), load("table.parquet", "y")
    libsvm = load("table.svm")  # its target is in the first column, and needs no name
    for other in (parquet, libsvm):
        assert_allclose(other.X, csv.X, rtol=1e-12)
        assert_allclose(other.y, csv.y)


def test_a_file_is_recognised_by_its_contents(here):
    TABLE.to_parquet("table.data")
    assert load("table.data", "y").features == ("a", "b")


def test_an_index_that_pandas_saved_is_no_feature(here):
    TABLE.to_csv("table.csv")
    data = load("table.csv", "y")
    assert data.features == ("a", "b")
    assert "no name" in data.notes[0]


@pytest.mark.parametrize(
    ("name", "shape"),
    list(zip(BUILT_IN, [(569, 30), (442, 10), (1797, 61), (178, 13)], strict=True)),
)
def test_a_built_in_data_set_is_standardised(name, shape):
    data = load(name)
    assert data.X.shape == shape
    assert_allclose(data.X.mean(axis=0), 0, atol=1e-12)
    assert_allclose(data.X.std(axis=0), 1, rtol=1e-12)


def test_constant_columns_of_digits_are_dropped_with_a_note():
    (note,) = load("digits").notes
    assert note == "Dropped 3 constant columns: pixel_0_0, pixel_4_0, pixel_4_7."


def test_constant_columns_of_a_file_are_dropped_on_request(here):
    TABLE.assign(c=0.1).to_csv("table.csv", index=False)
    assert load("table.csv", "y", drop_constant=True).features == ("a", "b")


def test_numbers_are_regressed_on_as_they_are_and_labels_as_indicators(here):
    numbers, _ = regression_target(load("diabetes"))
    assert_allclose(numbers[:, 0], standardised(load("diabetes").y), rtol=1e-12)
    two, _ = regression_target(load("breast_cancer"))
    assert two.shape == (569, 1)
    assert_allclose([two.mean(), two.std()], [0, 1], atol=1e-12)
    many, how = regression_target(load("wine"))
    assert many.shape == (178, 3)
    assert "each of 3 classes" in how
    assert_allclose(many.mean(axis=0), 0, atol=1e-12)
    assert_allclose(np.ptp(many, axis=0), 1, rtol=1e-12)  # indicators of 0 and 1, moved


def test_labels_are_counted_from_zero(here):
    TABLE.assign(y=["no", "yes", "no", "maybe"]).to_csv("text.csv", index=False)
    indices, classes = class_indices(load("text.csv", "y"))
    assert classes == ("maybe", "no", "yes")
    assert indices.tolist() == [1, 2, 1, 0]
    TABLE.assign(y=[True, False, False, True]).to_csv("truth.csv", index=False)
    assert class_indices(load("truth.csv", "y"))[1] == ("False", "True")


FILES = {
    "ok.csv": "a,b,y\n1,2,3\n2,1,5\n4,4,4\n",
    "missing.csv": "a,b,y\n1,2,3\n1,,3\n2,1,5\n",
    "text.csv": "a,b,y\n1,x,3\n2,z,5\n",
    "dates.csv": "a,y\n2020-01-01,1\n2020-01-02,3\n",
    "constant.csv": "a,b,y\n1,2,3\n2,2,5\n",
    "same.csv": "a,y\n1,3\n2,3\n",
    "empty.csv": "",
    "blank.csv": "\n \n",
    "header.csv": "a,b,y\n",
    "one.csv": "a,b,y\n1,2,3\n",
    "ragged.csv": "a,b,y\n1,2,3\n1,2,3,4\n",
    "long.csv": "a,b,y\n1,2,3,4\n1,2,3,4\n",
    "quote.csv": 'a,b,y\n1,"2,3\n2,1,5\n',
    "numbers.csv": "1,2,3\n2,3,4\n",
    "infinite.csv": "a,y\n1,2\ninf,3\n",
    "huge.csv": "a,y\n1e200,1\n2e200,2\n",
    "alone.csv": "y\n1\n2\n",
    "twice.parquet": "a,b\n1,2\n",
    "broken.parquet": "PAR1 and nothing more",
    "broken.svm": "1 1:2 3:4\n-1 1:x 2:5\n",
}
BAD = [
    ("brest_cancer", None, "did you mean 'breast_cancer'?"),
    ("nothing", None, "There is no data set 'nothing': choose one of breast_cancer, diabetes"),
    ("missing_file.csv", "y", "There is no file missing_file.csv"),
    ("folder/", "y", "folder is a directory"),
    ("ok.csv", None, "Say with --target which column of 'ok' to predict: its columns are a, b, y"),
    ("ok.csv", "Y", "no column 'Y' (did you mean 'y'?): its columns are a, b, y"),
    ("diabetes", "bmy", "no column 'bmy' (did you mean 'bmi'?)"),
    ("missing.csv", "y", "1 missing value, the first in row 2 (column 'b')"),
    ("text.csv", "y", "Column 'b' is not numeric (it holds 'x')"),
    ("dates.csv", "y", "Column 'a' is not numeric"),
    ("constant.csv", "y", "Column 'b' of 'constant' is constant"),
    ("same.csv", "y", "The target column 'y' is constant (3)"),
    ("empty.csv", "y", "empty.csv is empty"),
    ("blank.csv", "y", "blank.csv is empty"),
    ("header.csv", "y", "'header' has 0 rows"),
    ("one.csv", "y", "'one' has 1 row of data"),
    ("ragged.csv", "y", "malformed CSV file (Expected 3 fields in line 3, saw 4)"),
    ("long.csv", "y", "malformed CSV file"),
    ("quote.csv", "y", "malformed CSV file"),
    ("numbers.csv", "y", "The first line of numbers.csv holds numbers"),
    ("infinite.csv", "y", "Column 'a' has infinite values"),
    ("huge.csv", "y", "Column 'a' has infinite values or ones beyond 1e150"),
    ("alone.csv", "y", "no feature column beside the target 'y'"),
    ("twice.parquet", "y", "twice.parquet is not a Parquet file"),
    ("broken.parquet", "y", "broken.parquet is a damaged Parquet file"),
    ("broken.svm", None, "broken.svm is a malformed libsvm file"),
    ("bytes.csv", "y", "bytes.csv is not text in UTF-8"),
]


@pytest.mark.parametrize(("source", "target", "words"), BAD, ids=[case[0] for case in BAD])
def test_bad_data_are_refused_in_one_sentence(here, source, target, words):
    for name, text in FILES.items():
        (here / name).write_text(text, encoding="utf-8")
    (here / "bytes.csv").write_bytes(bytes(range(256)))
    (here / "folder").mkdir()
    with pytest.raises(DataError) as caught:
        load(source, target)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message and message.endswith(".")


def test_a_target_that_does_not_fit_the_model_is_refused(here):
    with pytest.raises(DataError, match=r"logistic needs class labels.* 214 different values"):
        class_indices(load("diabetes"))
    TABLE.assign(y=[0.5, 1.0, 0.5, 1.0]).to_csv("half.csv", index=False)
    with pytest.raises(DataError, match="values that are not whole numbers"):
        class_indices(load("half.csv", "y"))
    pd.DataFrame({"a": np.arange(101.0), "y": [f"name{i}" for i in range(101)]}).to_csv("names.csv")
    with pytest.raises(DataError, match="text with 101 different values"):
        regression_target(load("names.csv", "y"))
