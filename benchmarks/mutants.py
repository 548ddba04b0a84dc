"""Mutants: single lines made wrong on purpose, and whether the test that should see each one does.

    python benchmarks/mutants.py                    # all of them, a few minutes
    python benchmarks/mutants.py folds resume       # those whose name holds one of these words
    python benchmarks/mutants.py --table            # the table of docs/testing.md

Works on a copy of the tree. Each mutant's test must pass on the code as it is and fail on the mutant ("killed"). Exit
code 1 where a mutant survives, or where its old text is not in its file exactly once: the code was changed since, so
the mutant has to be written anew.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import pytest
import typer

LIBRARIES = (
    "tensorflow",
    "keras",
    "ray.data",
    "ray.train",
    "ray.tune",
    "optuna",
    "sklearn.linear_model",
    "scipy.stats",
)
ROOT = Path(__file__).parents[1]
TIMEOUT = 1200  # seconds of one test, or of all of them on the code as it is


class Mutant(NamedTuple):
    """A line made wrong: `old` stands in `file` exactly once; `test` is a pytest id that fails on `new`."""

    name: str
    file: str
    function: str
    old: str
    new: str
    effect: str
    test: str


def _m(name: str, function: str, old: str, new: str, effect: str, test: str) -> Mutant:
    """Make a mutant of `module.py::function`; its test is of `tests/`."""
    file, _, where = function.partition("::")
    return Mutant(name, f"ham_ray/{file}", where, old, new, effect, f"tests/{test}")


LOOP, TRAININGS, INTERVALS = "ray/test_loop.py::", "unit/test_trainings.py::", "unit/test_intervals.py::"
MUTANTS = [
    # split
    _m(
        "folds by lesion",
        "data/ingest.py::_rows",
        '("image_id", "group_id", "label", "partition")',
        '("image_id", "lesion_id", "label", "partition")',
        "near-duplicates of a training lesion are tested on",
        "data/test_ingest_bad_input.py::test_lesions_that_share_pixels_are_in_one_fold",
    ),
    _m(
        "near-duplicates forgotten",
        "data/splits.py::group_ids",
        "        if first in lesion_of and second in lesion_of:",
        "        if False:",
        "known near-duplicates are dealt to different folds",
        "unit/test_splits.py::test_lesions_of_near_duplicates_become_one_group",
    ),
    _m(
        "folds exchanged",
        "training/input_pipeline.py::split_rows",
        '{"validation": recipe.data.validation_fold, "test": recipe.data.test_fold}',
        '{"test": recipe.data.validation_fold, "validation": recipe.data.test_fold}',
        "the test fold chooses the epoch",
        "unit/test_input_pipeline.py::test_the_splits_are_the_folds_of_the_recipe",
    ),
    _m(
        "validation fold trained on",
        "recipe.py::Recipe.training_folds",
        "if fold not in (self.data.test_fold, self.data.validation_fold)",
        "if fold not in (self.data.test_fold,)",
        "validation scores are of images learned from",
        "unit/test_input_pipeline.py::test_the_splits_are_the_folds_of_the_recipe",
    ),
    _m(
        "conflicting rows kept",
        "data/quarantine.py::_problem",
        '    if repeated:\n        return "conflicting metadata", "its rows differ"\n',
        "",
        "an image with two diagnoses is trained on",
        "data/test_ingest_bad_input.py::test_rows_of_one_image_that_disagree",
    ),
    # weights of classes and images
    _m(
        "class counts of validation",
        "training/loop.py::worker_data",
        'counts = np.bincount(labels["training"]',
        'counts = np.bincount(labels["validation"]',
        "class weights are of other images",
        LOOP + "test_a_task_counts_the_training_labels_and_no_others",
    ),
    _m(
        "class weights without scale",
        "training/objectives.py::CrossEntropy.constants",
        "class_weights(counts, settings.class_weight_scale)",
        "class_weights(counts, 1.0)",
        "the scale that a search chooses does nothing",
        "unit/test_objectives.py::test_constants_are_of_the_settings_and_the_counts",
    ),
    _m(
        "class weights ignored",
        "training/objectives.py::CrossEntropy.losses",
        "(smoothed, logits) * weights",
        "(smoothed, logits)",
        "rare classes weigh as common ones",
        LOOP + "test_two_epochs_are_those_of_keras_fit",
    ),
    _m(
        "dropout not scaled",
        "training/step.py::Trainer._drop",
        "features / (1.0 - rate)",
        "features",
        "features are larger in prediction than in training",
        LOOP + "test_dropout_keeps_the_mean_of_the_features",
    ),
    _m(
        "normalisation decays",
        "training/step.py::Trainer._compile",
        'var_names=["bias", "gamma", "beta"]',
        'var_names=["bias"]',
        "normalisation is pulled to zero",
        LOOP + "test_two_epochs_are_those_of_keras_fit",
    ),
    # the epoch that is kept
    _m(
        "last epoch kept",
        "training/loop.py::Training.run_epoch",
        "                self._best = _arrays(trainer.network)",
        "            self._best = _arrays(trainer.network)",
        "the model is that of the last epoch under the score of the best",
        LOOP + "test_the_best_epoch_is_kept_and_not_the_last",
    ),
    _m(
        "last of equal epochs",
        "training/loop.py::Training.run_epoch",
        "score > progress.best_score",
        "score >= progress.best_score",
        "another epoch is kept",
        LOOP + "test_the_best_epoch_is_kept_and_not_the_last",
    ),
    _m(
        "chosen by another score",
        "training/loop.py::Training.run_epoch",
        'row.get(f"validation_{select_by}"',
        'row.get("validation_macro_f1"',
        "`select_by` does nothing",
        LOOP + "test_selection_by_balanced_accuracy",
    ),
    _m(
        "validation mirrored",
        "training/step.py::Trainer.predict",
        "return predict(self.forward, inputs)",
        "return predict(self.forward, inputs[:, :, ::-1])",
        "validation scores are of other images",
        LOOP + "test_two_epochs_are_those_of_keras_fit",
    ),
    # resume
    _m(
        "optimizer not resumed",
        "training/loop.py::_resume",
        '    _assign(trainer.optimizer.variables, _listed(checkpoint, "optimizer"))\n',
        "",
        "an interrupted run ends in other losses",
        LOOP + "test_resumed_equals_uninterrupted",
    ),
    _m(
        "best of before forgotten",
        "training/loop.py::_resume",
        'return progress, _listed(checkpoint, "best")',
        'return progress, _listed(checkpoint, "network")',
        "a resumed run keeps the epoch it was interrupted after",
        LOOP + "test_the_best_epoch_of_before_an_interruption_is_kept",
    ),
    # schedule, moving average, random numbers
    _m(
        "schedule restarts each epoch",
        "training/loop.py::Training._train_epoch",
        "learning_rate(phase.peak, before + step + i,",
        "learning_rate(phase.peak, step + i,",
        "the learning rate never falls",
        LOOP + "test_two_epochs_are_those_of_keras_fit",
    ),
    _m(
        "average not taken",
        "training/step.py::Trainer.averaged",
        "        self.optimizer.finalize_variable_values(self.variables)\n",
        "",
        "`averaging` does nothing",
        LOOP + "test_validation_sees_the_average_of_the_weights_and_training_does_not",
    ),
    _m(
        "average starts old",
        "training/step.py::Trainer._replica_step",
        "tf.minimum(recipe.optimizer.averaging, (1.0 + age) / (10.0 + age))",
        "tf.constant(recipe.optimizer.averaging)",
        "the first epochs are judged by their random start",
        LOOP + "test_validation_sees_the_average_of_the_weights_and_training_does_not",
    ),
    _m(
        "each epoch augmented alike",
        "training/loop.py::Training._train_epoch",
        "epoch * data.steps + step, rates)",
        "step, rates)",
        "each image is seen in one augmentation alone",
        LOOP + "test_each_epoch_augments_anew",
    ),
    _m(
        "patience in the head's epochs",
        "training/loop.py::_stalled",
        "max(progress.best_epoch, recipe.head_epochs)",
        "progress.best_epoch",
        "a fine-tuning is stopped before it begins",
        LOOP + "test_patience_begins_after_the_epochs_of_the_head",
    ),
    _m(
        "epochs in one order",
        "training/sampler.py::Sampler._visits",
        "default_rng([self.seed, epoch, stratum])",
        "default_rng([self.seed, stratum])",
        "each epoch has the batches of the first",
        "unit/test_sampler.py::test_epochs_and_seeds_shuffle_differently_and_repeat",
    ),
    _m(
        "streamed from the first step on",
        "training/input_pipeline.py::image_batches",
        "order = sampler.order(epoch)[first:]",
        "order = sampler.order(epoch)[: sampler.steps - first]",
        "a resumed epoch learns some images twice and others not at all",
        "unit/test_input_pipeline.py::test_batches_go_on_in_the_middle_of_an_epoch",
    ),
    # pixels and activations
    _m(
        "labels of other images",
        "data/stored.py::StoredRows.__getitem__",
        "labels=self.labels[rows])",
        "labels=self.labels[: len(places)])",
        "images are learned and judged by other images' labels",
        "unit/test_input_pipeline.py::test_batches_are_the_same_in_memory_and_streamed_on_any_number_of_workers",
    ),
    _m(
        "crop squashes",
        "data/pictures.py::_decode",
        'if geometry == "crop" else None',
        'if geometry == "square" else None',
        "a table of cropped images holds bent ones",
        "data/test_ingest_table.py::test_geometry",
    ),
    _m(
        "fingerprint not in the key",
        "training/activations.py::_table",
        '"images": images.fingerprint',
        '"images": ""',
        "other images of the same names have the activations of the first",
        "ray/test_activations.py::test_other_pixels_under_the_same_names_share_no_table",
    ),
    _m(
        "cached views all alike",
        "training/input_pipeline.py::cached_batches",
        'if recipe.augmentation.name == "light" else np.zeros(share, int)',
        'if recipe.augmentation.name == "dark" else np.zeros(share, int)',
        "training from activations does not augment",
        "unit/test_input_pipeline.py::test_cached_batches_are_the_views_that_the_augmentation_of_their_step_makes",
    ),
    _m(
        "cached rows of the first worker",
        "training/activations.py::Activations.take",
        "self._rows[places].tolist()",
        "places.tolist()",
        "the second worker learns other images' labels",
        "unit/test_input_pipeline.py::test_cached_batches_of_the_second_worker_and_without_augmentation",
    ),
    _m(
        "a stuck stream from its start",
        "training/decoding.py::Decoder.stream",
        "rows[done:].stretches(PIECE)",
        "rows.stretches(PIECE)",
        "after a node is lost images are learned with the labels of others",
        "unit/test_input_pipeline.py::test_a_stream_that_is_stuck_goes_on_where_it_stood",
    ),
    _m(
        "patches mirrored",
        "models/vision_transformer.py::load",
        "read.kernel.reshape(-1, width)",
        "read.kernel.transpose(1, 0, 2, 3).reshape(-1, width)",
        "pretrained kernels see each patch mirrored",
        "unit/test_backbones.py::test_a_vit_gives_what_keras_hubs_gives",
    ),
    _m(
        "one rate for all stages",
        "training/step.py::Trainer._optimizer",
        "chosen.layer_decay ** below.get(one.path, 0)",
        "1.0",
        "layer_decay changes nothing",
        "unit/test_optimizer.py::test_each_stage_leaves_a_share_of_its_rate_to_the_one_below",
    ),
    _m(
        "elastic workers decide by themselves",
        "training/elastic.py::EpochsEnd.may_go_on",
        "self.decided.setdefault(epoch, not self.stopping)",
        "not self.stopping",
        "workers stop after different epochs, and wait for each other for good",
        "unit/test_epochs_end.py::test_all_workers_stop_after_the_same_epoch",
    ),
    _m(
        "leases of living drivers",
        "search/sharing.py::Membership._buried",
        "if not (row.gone() or self._is_still(row)):",
        "if row.gone() and self._is_still(row):",
        "two drivers run one trial",
        "unit/test_sharing.py::test_a_trial_that_runs_elsewhere_is_waited_for_and_not_run_again",
    ),
    _m(
        "pixels of one size for all models",
        "inference/pipeline.py::_Predictor._predicted",
        "self._mean(members, views[size])",
        "self._mean(members, views[max(views)])",
        "a model predicts images of another model's size",
        "ray/test_predict_job.py::test_models_of_different_sizes_each_get_their_own_pixels",
    ),
    # a run's files
    _m(
        "probabilities reversed",
        "workflows/steps/trainings.py::_finish",
        "predictions.predictions(parts.rows[name], name, p, context",
        "predictions.predictions(parts.rows[name], name, p[::-1], context",
        "each figure is of other images",
        TRAININGS + "test_each_image_has_its_own_probabilities_label_and_split",
    ),
    _m(
        "labels reversed",
        "evaluation/predictions.py::predictions",
        'rows["label"].to_numpy(np.int32)',
        'rows["label"].to_numpy(np.int32)[::-1]',
        "each image has another's label",
        TRAININGS + "test_each_image_has_its_own_probabilities_label_and_split",
    ),
    _m(
        "identity without weights",
        "workflows/steps/trainings.py::_identity",
        '"weights": {"sha256": context.weights_of(recipe).sha256}',
        '"weights": {"sha256": None}',
        "a run goes on from other weights under its old name",
        TRAININGS + "test_a_run_from_other_weights_is_another_run",
    ),
    _m(
        "prior of validation",
        "workflows/steps/trainings.py::_accompany",
        'prior(rows["training"],',
        'prior(rows["validation"],',
        "probabilities are adjusted for other class shares",
        TRAININGS + "test_the_calibration_knows_the_class_shares_of_the_training_images",
    ),
    # search and its finals
    _m(
        "pruned trials complete",
        "search/study.py::Study.prune",
        "self._end(number, TrialState.PRUNED)",
        "self._end(number, TrialState.COMPLETE, 0.0)",
        "the sampler learns from scores of a few epochs",
        "unit/test_study.py::test_stopped_trials_are_pruned_and_failed_ones_keep_their_reason",
    ),
    _m(
        "trial has its last score",
        "search/study.py::Study.complete",
        "value = max(self._frozen(number).intermediate_values.values())",
        "value = list(self._frozen(number).intermediate_values.values())[-1]",
        "a trial's value is not that of the epoch it keeps",
        "unit/test_study.py::test_a_trials_value_is_that_of_its_best_epoch",
    ),
    _m(
        "logarithm forgotten",
        "search/space.py::Numbers.suggest",
        "trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)",
        "trial.suggest_float(name, self.low, self.high, step=self.step)",
        "nine in ten learning rates are of the highest decade",
        "unit/test_space.py::test_a_logarithmic_range_is_drawn_evenly_over_its_decades",
    ),
    _m(
        "trials drawn alike",
        "search/study.py::make_sampler",
        "space.sampler.seed * 100_003 + number",
        "space.sampler.seed * 100_003",
        "random trials repeat the first",
        "unit/test_study.py::test_each_trial_has_draws_of_its_own",
    ),
    _m(
        "trial scored by another score",
        "search/trial.py::scores",
        'row[f"validation_{recipe.select_by}"]',
        'row["validation_macro_f1"]',
        "the search maximises something else than its objective",
        "unit/test_tuner.py::test_a_trial_is_scored_by_the_objective_of_its_search",
    ),
    _m(
        "worst trials are finalists",
        "search/study.py::Study.best",
        "key=lambda trial: -(trial.value or 0.0)",
        "key=lambda trial: trial.value or 0.0",
        "the finals train the worst trials",
        "unit/test_study.py::test_trials_ranked_since_come_before_those_of_higher_value",
    ),
    _m(
        "trainings weigh alike",
        "workflows/steps/finals.py::_joined",
        "average([average([*result.values()]) for result in members.values()])",
        "average([run for result in members.values() for run in result.values()])",
        "a trial of which a training failed weighs less",
        "unit/test_finals.py::test_trials_have_equal_weight_however_many_of_their_trainings_ended",
    ),
    # prediction
    _m(
        "ensemble of equal shares",
        "inference/saved.py::_winner",
        "1.0 / len(winner.members) / len(runs)",
        "1.0 / len(names)",
        "the ensemble predicted with is not the one evaluated",
        "unit/test_saved.py::test_a_winner_is_the_mean_of_its_trials_and_of_their_trainings",
    ),
    _m(
        "shares ignored",
        "inference/pipeline.py::_Predictor._mean",
        "share / len(pictures)) for model",
        "1 / len(members) / len(pictures)) for model",
        "the ensemble predicted with is not the one evaluated",
        "unit/test_predicting.py::test_an_ensemble_is_the_mean_of_its_members_by_their_shares_over_the_views",
    ),
    _m(
        "geometry forgotten",
        "workflows/predict.py::Options.pixels",
        "asked or (known.pop() if known else DEFAULT_GEOMETRY)",
        "asked or DEFAULT_GEOMETRY",
        "pictures are cropped for a model that learned whole ones",
        "unit/test_saved.py::test_pictures_are_made_square_as_those_that_the_model_learned_from",
    ),
    _m(
        "calibration of the first model",
        "inference/saved.py::calibrated",
        "else model.calibration.apply(values[:, index])",
        "else models[0].calibration.apply(values[:, index])",
        "a model has the calibration of another",
        "unit/test_predicting.py::test_each_model_is_calibrated_by_itself_before_they_are_averaged",
    ),
    _m(
        "learned by one model alone",
        "inference/saved.py::split_of",
        "next(split for split in SPLITS if split in result)",
        "next(split for split in reversed(SPLITS) if split in result)",
        "an ensemble is reported on what a member learned from",
        "unit/test_saved.py::test_what_one_of_several_models_learned_from_is_training_for_all",
    ),
    _m(
        "truth of other images",
        "workflows/steps/evaluating.py::_with_truth",
        "truth.rows.reindex(ids)",
        "truth.rows.reindex(sorted(ids))",
        "predictions are judged by other images' labels",
        "unit/test_evaluate_job.py::test_the_same_predictions_in_any_format_give_the_same_numbers",
    ),
    _m(
        "columns in another order",
        "evaluation/isic.py::to_csv",
        "p[:, classes.labels[dx]]",
        "p[:, -classes.labels[dx]]",
        "ISIC's scorer reads other classes",
        "unit/test_isic.py::test_columns_and_values",
    ),
    _m(
        "class order not checked",
        "inference/scan.py::_classes",
        "if classes.codes != codes or",
        "if",
        "each probability is of another class",
        "unit/test_scan.py::test_a_model_of_known_classes_in_another_order_is_refused_and_both_are_named",
    ),
    _m(
        "class order not recorded",
        "training/workers.py::_finish",
        '            save(classifier, path, config["classes"])',
        "            classifier.save(path)",
        "nobody notices that each probability is of another class",
        "ray/test_workers.py::test_the_trained_network_is_saved_with_its_classes_and_gives_the_predictions",
    ),
    _m(
        "untrained network saved",
        "training/workers.py::_finish",
        "        target.assign(source.numpy())",
        "        target.assign(target.numpy())",
        "model.keras and PREDICTIONS are of a network at its start",
        "ray/test_workers.py::test_the_trained_network_is_saved_with_its_classes_and_gives_the_predictions",
    ),
    # figures
    _m(
        "balanced over absent classes",
        "evaluation/metrics.py::balanced_accuracy",
        "labels=np.unique(y_true)",
        "labels=CLASSES, zero_division=0",
        "absent classes lower balanced accuracy",
        "unit/test_metrics.py::test_balanced_accuracy_is_over_present_classes",
    ),
    _m(
        "training images reported",
        "evaluation/assessment.py::reported",
        'isin(["test", NEW])',
        'isin(["test", NEW, "validation"])',
        "figures are of images that chose the epoch",
        "unit/test_assessment.py::test_only_images_that_no_model_knows_are_reported",
    ),
    _m(
        "images resampled",
        "evaluation/intervals.py::intervals",
        'draws = _bootstrap(y_true, p, frame["group_id"], resamples, seed, names or',
        'draws = _bootstrap(y_true, p, frame["image_id"], resamples, seed, names or',
        "intervals are too narrow where lesions have several images",
        INTERVALS + "test_images_of_one_lesion_widen_the_interval",
    ),
    _m(
        "strata forgotten",
        "evaluation/intervals.py::resampled_weights",
        "    strata = [np",
        "    stratum[:] = 0\n    strata = [np",
        "rare classes are absent from some resamples",
        INTERVALS + "test_resamples_draw_whole_lesions_and_keep_the_strata",
    ),
    _m(
        "difference not paired",
        "evaluation/intervals.py::paired_differences",
        "resamples, seed, names, classes) for p in (p_a, p_b)]",
        "resamples, seed + (p is p_b), names, classes) for p in (p_a, p_b)]",
        "intervals of differences are too wide",
        INTERVALS + "test_paired_difference_has_the_width_of_the_images_own_differences",
    ),
    _m(
        "tables not aligned",
        "evaluation/intervals.py::_aligned",
        'b.set_index("image_id").loc[a["image_id"]].reset_index()',
        "b.reset_index(drop=True)",
        "models are compared on different images",
        INTERVALS + "test_paired_difference_of_a_table_with_itself_is_zero",
    ),
    _m(
        "tau of the wrong sign",
        "evaluation/calibration.py::Calibration.apply",
        "- self.tau * _logs",
        "+ self.tau * _logs",
        "calibration favours the classes it should hold back",
        "unit/test_calibration.py::test_it_is_the_formula",
    ),
    _m(
        "fitted on test",
        "evaluation/calibration.py::fit",
        'validation = of_split(predictions, "validation")',
        'validation = predictions[predictions["split"] != "training"]',
        "test images choose temperature and thresholds",
        "unit/test_calibration.py::test_test_images_do_not_matter",
    ),
    _m(
        "cross-fitted by image",
        "evaluation/calibration.py::_cross_fitted",
        'validation["group_id"].tolist()',
        'validation["image_id"].tolist()',
        "a calibration is judged on lesions it was fitted on",
        "unit/test_calibration.py::test_cross_fitting_keeps_lesions_whole",
    ),
    _m(
        "calibration used where it harms",
        "evaluation/calibration.py::chosen",
        "used = fitted if gain > 0 else",
        "used = fitted if gain > -1 else",
        "a calibration that fits noise changes the calls",
        "unit/test_calibration.py::test_a_calibration_that_fits_noise_alone_is_not_used_and_says_so",
    ),
    _m(
        "threshold one image low",
        "evaluation/thresholds.py::choose",
        "float(np.nextafter(of_interest[needed - 1], np.inf))",
        "float(of_interest[needed - 1])",
        "the specificity asked for is missed",
        "unit/test_thresholds.py::test_by_hand",
    ),
    _m(
        "another fold validates",
        "recipe.py::Recipe.crossed",
        "validation_fold=(fold + 1) % FOLDS)",
        "validation_fold=(fold + 2) % FOLDS)",
        "another fold chooses than the page says",
        "unit/test_cross_validation.py::test_each_image_is_a_test_image_once",
    ),
    _m(
        "thresholds of the test fold",
        "workflows/steps/comparison.py::_test",
        "thresholds.choose(*arrays(validation),",
        "thresholds.choose(*arrays(test),",
        "sensitivity at a threshold is that of the images that chose it",
        "unit/test_cross_validation.py::test_each_fold_calls_melanoma_by_the_thresholds_of_its_own_validation_images",
    ),
    _m(
        "McNemar of other images",
        "evaluation/assessment.py::mcnemar",
        "right[1].loc[right[0].index]",
        "right[1].set_axis(right[0].index)",
        "models are compared on different images",
        "unit/test_assessment.py::test_mcnemar_is_the_exact_test_of_the_images_only_one_gets_right",
    ),
    _m(
        "lesion of its first image",
        "evaluation/assessment.py::by_lesion",
        "[probabilities].mean()",
        "[probabilities].first()",
        "figures by lesion are of one image of each",
        "unit/test_assessment.py::test_a_lesion_has_the_mean_of_its_images_and_no_label_where_they_differ",
    ),
    _m(
        "trivial baseline fitted on test",
        "models/trivial_baselines.py::trivial_baselines",
        '    fitted = splits["training"]\n',
        "    fitted = pd.concat(splits.values())\n",
        "what a model has to beat has seen the test images",
        "unit/test_trivial_baselines.py::test_test_labels_are_not_used",
    ),
    _m(
        "comparisons not adjusted",
        "evaluation/assessment.py::holm",
        "(len(p_values) - rank) * p_values[index]",
        "p_values[index]",
        "among many comparisons one is always significant",
        "unit/test_assessment.py::test_holm_by_hand",
    ),
]


def _copied(folder: Path) -> Path:
    """Copy the tree, without what is not part of the project."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "shared")
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=ignored))


def _passes(tree: Path, tests: list[str]) -> tuple[bool, str]:
    """Say whether these tests pass in the tree, and return the end of what pytest printed. No test at all is no pass.

    They run in a fork of this process, which has imported the libraries already: importing them takes longer than most
    tests.
    """
    printed = tree / "printed.txt"
    run = multiprocessing.get_context("fork").Process(target=_pytest, args=(tree, tests, printed))
    run.start()
    run.join(TIMEOUT)
    if run.is_alive():
        run.kill()
        raise SystemExit(f"more than {TIMEOUT} s for {' '.join(tests)}: is the machine busy?")
    text = printed.read_text()[-2000:]
    if run.exitcode not in (0, 1):
        raise SystemExit(f"pytest could not run {' '.join(tests)}:\n{text}")
    return run.exitcode == 0, text


def _pytest(tree: Path, tests: list[str], printed: Path) -> None:
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])))


def _killed(tree: Path, mutant: Mutant) -> bool:
    """Say whether the mutant's test fails on it; the tree is as before afterwards."""
    path = tree / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return not _passes(tree, [mutant.test])[0]
    finally:
        path.write_text(text)


def _stale(mutant: Mutant) -> str:
    """Say why the mutant cannot be made; empty where it can."""
    path = ROOT / mutant.file
    found = path.read_text().count(mutant.old) if path.exists() else 0
    if found != 1:
        return f"{mutant.name}: {mutant.file} holds {mutant.old.strip()!r} {found} times, not once"
    name = mutant.test.partition("::")[2]
    if f"def {name}" not in (ROOT / mutant.test.partition("::")[0]).read_text():
        return f"{mutant.name}: no test {mutant.test}"
    return ""


def main(
    words: Annotated[list[str] | None, typer.Argument(help="parts of names; all mutants without any")] = None,
    table: Annotated[bool, typer.Option(help="print the table of docs/testing.md and run nothing")] = False,
) -> None:
    """Make each mutant and run its test."""
    if table:
        print("| mutant | line of | what it would change | killed by |\n|---|---|---|---|")
        for one in MUTANTS:
            place, test = f"{one.file.removeprefix('ham_ray/')}::{one.function}", one.test.removeprefix("tests/")
            print(f"| {one.name} | `{place}` | {one.effect} | `{test}` |")
        return
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    stale = list(filter(None, map(_stale, chosen)))
    print(*stale, sep="\n", end="\n" if stale else "")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.dont_write_bytecode = True  # a mutant of the same length and second would be taken for the code before it
    for library in LIBRARIES:
        importlib.import_module(library)
    survived = []
    with tempfile.TemporaryDirectory() as folder:
        tree = _copied(Path(folder))
        sound, said = _passes(tree, sorted({one.test for one in chosen}))
        if not sound:
            raise SystemExit(f"tests fail on the code as it is:\n{said}")
        for one in (one for one in chosen if not _stale(one)):
            started = time.monotonic()
            killed = _killed(tree, one)
            survived += [] if killed else [one.name]
            print(f"{'killed  ' if killed else 'SURVIVED'} {one.name} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{len(chosen)} mutants: {len(survived)} survived, {len(stale)} could not be made")
    raise SystemExit(bool(survived or stale))


if __name__ == "__main__":
    typer.run(main)
