import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';

const ROOT = resolve(__dirname, '../..');
const SERIES_PAGE = 'docs/control-plane-watch.md';

/** What is in the repository, and what is about to be: not what lies about in the folder. */
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: ROOT,
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => file !== '' && existsSync(join(ROOT, file)));
const pages = files.filter((file) => file.endsWith('.md'));
const text = (file: string) => readFileSync(join(ROOT, file), 'utf8');

/** Code is blanked, for in it brackets and `#` are no links and headings. Lines stay. */
const FENCED = /^( *)(`{3,}).*\n[\s\S]*?^\1\2`*$/gm;
const blank = (code: string) => code.replace(/[^\n]/g, ' ');
const prose = (markdown: string) => markdown.replace(FENCED, blank);

/** The anchors of a page: of its headings, by GitHub's rules, and those that it sets itself. */
function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  for (const [, heading] of prose(markdown).matchAll(/^#{1,6} +(.+?) *#*$/gm)) {
    const shown = (heading as string).replace(/!?\[([^\]]*)\]\([^)]*\)/g, '$1');
    const slug = shown
      .toLowerCase()
      .replace(/[^\p{L}\p{M}\p{N}\p{Pc}\- ]/gu, '')
      .replaceAll(' ', '-');
    let anchor = slug;
    // A heading that is there already gets a number.
    for (let n = 1; anchors.has(anchor); n++) anchor = `${slug}-${n}`;
    anchors.add(anchor);
  }
  for (const [, name] of prose(markdown).matchAll(/<a (?:id|name)="([^"]+)">/g)) anchors.add(name as string);
  return anchors;
}

interface Link {
  readonly line: number;
  readonly target: string;
}

/** Where the links of a page lead that are not to another site. */
function linksOf(markdown: string): Link[] {
  const visible = prose(markdown).replace(/`[^`\n]*`/g, blank);
  const found = [
    ...visible.matchAll(/\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)/g),
    ...visible.matchAll(/^ {0,3}\[[^\]]+\]: +<?([^\s>]+)/gm),
    ...visible.matchAll(/\b(?:href|src)="([^"]+)"/g),
  ];
  return found
    .map(({ 1: target, index }) => ({
      line: visible.slice(0, index).split('\n').length,
      target: target as string,
    }))
    .filter(({ target }) => !/^[a-z][a-z+.-]*:/i.test(target));
}

/** What is wrong with a link, in words; undefined if it leads somewhere. */
function problemOf(page: string, target: string, read = text): string | undefined {
  const [path = '', anchor] = target.split('#', 2).map(decodeURIComponent);
  if (path.startsWith('/')) return 'begins with /, which leads out of the repository';
  const file = path === '' ? page : relative(ROOT, resolve(ROOT, dirname(page), path));
  if (file !== '' && !files.some((one) => one === file || one.startsWith(`${file}/`)))
    return `there is no ${file}`;
  if (anchor === undefined) return undefined;
  if (!file.endsWith('.md')) return `${file} has no headings`;
  return anchorsOf(read(file)).has(anchor) ? undefined : `${file} has no #${anchor}`;
}

describe('the links of the documents', () => {
  it('lead to files and headings that there are', () => {
    const links = pages.flatMap((page) => linksOf(text(page)).map((link) => ({ page, ...link })));
    expect(links.length).toBeGreaterThan(150);
    const problems = links.flatMap(({ page, line, target }) => {
      const problem = problemOf(page, target);
      return problem === undefined ? [] : [`${page}:${line}: ${target}: ${problem}`];
    });
    expect(problems).toEqual([]);
  });

  it('name source files that there are, also without a link', () => {
    const named = pages.flatMap((page) =>
      [...text(page).matchAll(/`((?!dist\/)[a-z][\w.-]*\/[\w./-]+\.(?:[cm]?[jt]s|sql|sh|ya?ml))`/g)].map(
        ([, file]) => ({
          page,
          file: file as string,
        }),
      ),
    );
    expect(named.length).toBeGreaterThan(50);
    const missing = named.filter(({ file }) => !files.includes(file) && !files.includes(`src/${file}`));
    expect(missing).toEqual([]);
  });

  it('reach every page from the README', () => {
    const reached = new Set(['README.md']);
    // A set is walked to its end while it grows.
    for (const page of reached) {
      for (const { target } of linksOf(text(page))) {
        const [path = ''] = target.split('#');
        const linked = relative(ROOT, resolve(ROOT, dirname(page), path));
        // A link to a folder shows its pages.
        for (const file of pages) if (file === linked || dirname(file) === linked) reached.add(file);
      }
    }
    expect(pages.filter((page) => !reached.has(page))).toEqual([]);
  });

  it('are followed also from code, messages and settings', () => {
    const mentions = files
      .filter((file) => !/^(?:package-lock\.json|docs\/openapi\.json)$/.test(file))
      .flatMap((file) =>
        [...text(file).matchAll(/(?<![\w/.-])docs\/[\w./-]+\.md(?:#[\w-]+)?/g)].map(([path]) => ({
          file,
          path,
        })),
      );
    expect(mentions.length).toBeGreaterThan(20);
    const problems = mentions.flatMap(({ file, path }) => {
      const problem = problemOf('README.md', path);
      return problem === undefined ? [] : [`${file}: ${path}: ${problem}`];
    });
    expect(problems).toEqual([]);
  });

  it.each([
    ['nowhere.md#at-all', 'there is no nowhere.md'],
    ['docs', undefined],
    ['/docs', 'begins with /, which leads out of the repository'],
    ['../elsewhere.md', 'there is no ../elsewhere.md'],
    ['package.json#scripts', 'package.json has no headings'],
    ['#twice', undefined],
    ['#twice-1', undefined],
    ['#twice-2', 'README.md has no #twice-2'],
    ['#set-by-hand', undefined],
    ['#in-code', 'README.md has no #in-code'],
    ['#the-admins-token-get-x_y-ünd-it', undefined],
  ])('are judged: %s', (target, problem) => {
    const page = [
      ...['# Twice', '## Twice', '```sh', '# In code', '```'],
      "## The admin's [token](#twice): `GET /x_y`, ünd it?",
      '<a id="set-by-hand"></a>**Names** are words.',
    ].join('\n');
    expect(problemOf('README.md', target, () => page)).toBe(problem);
  });
});

/** The histogram that a series is a part of, by its ending; else its own name. */
const familyOf = (name: string) => name.replace(/_(?:bucket|sum|count)$/, '');

describe('the series that the documents name', () => {
  /** Type by name, from the table. */
  const types = new Map(
    [...text(SERIES_PAGE).matchAll(/^\| `(control_plane_\w+)` *\| (\w+) *\|/gm)].map(
      ({ 1: name, 2: type }) => [name as string, type as string],
    ),
  );
  const queries = pages.flatMap((page) =>
    [...text(page).matchAll(/^```promql\n([\s\S]*?)^```$/gm)].map(([, query]) => query as string),
  );

  it('are in the table, each once', () => {
    const rows = text(SERIES_PAGE).match(/^\| `control_plane_\w+` /gm) ?? [];
    expect(rows.length).toBeGreaterThan(50);
    expect(types.size).toBe(rows.length);
    expect(queries.length).toBeGreaterThan(5);
    const unknown = pages.flatMap((page) => {
      const own = text(page);
      // What `extending` shows is declared there.
      const declared = [...own.matchAll(/^ *name: '(\w+)',$/gm)].map(([, name]) => `control_plane_${name}`);
      // A name with a colon is a recording rule's.
      return [...own.matchAll(/(?<![\w:])control_plane_[a-z]\w*[a-z]\b(?!:)/g)]
        .map(([name]) => name)
        .filter((name) => !types.has(name) && types.get(familyOf(name)) !== 'histogram')
        .filter((name) => !declared.includes(name))
        .map((name) => `${page}: ${name}`);
    });
    expect(unknown).toEqual([]);
  });

  it('are asked as their type wants: a counter by its growth, a histogram by a part of it', () => {
    const wrong = queries.flatMap((query) =>
      [...query.matchAll(/(?<before>\w*)\(?\s*(?<name>control_plane_\w+)/g)].flatMap(({ groups = {} }) => {
        const { name = '', before = '' } = groups;
        const family = familyOf(name);
        const isCounter = types.get(name) === 'counter';
        if (types.get(name) === 'histogram') return [`${name} has no value of its own`];
        if (isCounter && !['rate', 'irate', 'increase'].includes(before))
          return [`${name} without rate or increase`];
        if (family !== name && !types.has(name) && types.get(family) !== 'histogram')
          return [`${name} is no histogram`];
        return [];
      }),
    );
    expect(wrong).toEqual([]);
  });
});
