import { Argument, type Command } from 'commander';
import type { Terminal } from './terminal';

const SHELLS = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof SHELLS)[number];

/** Adds the command that writes a completion script for a shell, generated from the commands. */
export function addCompletion(program: Command, terminal: Terminal): void {
  program
    .command('completion')
    .description('write a completion script for a shell')
    .addArgument(new Argument('<shell>', 'bash, zsh or fish').choices(SHELLS))
    .addHelpText(
      'after',
      `
Examples:
  $ control-plane completion bash > ~/.local/share/bash-completion/completions/control-plane
  $ control-plane completion zsh > ~/.zfunc/_control-plane      # with fpath+=~/.zfunc before compinit
  $ control-plane completion fish > ~/.config/fish/completions/control-plane.fish`,
    )
    .action((shell: Shell) => terminal.print(SCRIPTS[shell](nodesOf(program))));
}

/** A command by its path, such as `task add`, and the words that can follow it. */
interface Node {
  readonly path: string;
  readonly words: readonly Word[];
}

interface Word {
  readonly word: string;
  readonly about: string;
  /** The values of an option, if they are known. */
  readonly values?: readonly string[];
}

function nodesOf(command: Command, path: readonly string[] = []): Node[] {
  const options = command.options.flatMap(({ long, description, argChoices }) =>
    long ? [{ word: long, about: description, values: argChoices }] : [],
  );
  const choices = command.registeredArguments.flatMap(({ argChoices = [], description }) =>
    argChoices.map((word) => ({ word, about: description })),
  );
  const subcommands = command.commands.map((one) => ({ word: one.name(), about: one.description() }));
  return [
    {
      path: path.join(' '),
      words: [...subcommands, ...choices, ...options, { word: '--help', about: 'display help' }],
    },
    ...command.commands.flatMap((one) =>
      [one.name(), ...one.aliases()].flatMap((name) => nodesOf(one, [...path, name])),
    ),
  ];
}

const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** The options with known values, each after the path of its command. */
const optionsWithValues = (nodes: readonly Node[]) =>
  nodes.flatMap(({ path, words }) =>
    words.flatMap(({ word, values }) => (values ? [{ after: `${path} ${word}`, values }] : [])),
  );

/** The script for bash. */
const bash = (nodes: readonly Node[]): string => `# bash completion of control-plane
_control_plane() {
  local current=\${COMP_WORDS[COMP_CWORD]} path= word words
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "\${path:+$path }$word" in
      ${nodes
        .filter(({ path }) => path !== '')
        .map(({ path }) => quoted(path))
        .join('|')}) path="\${path:+$path }$word" ;;
    esac
  done
  case "$path" in
${nodes.map(({ path, words }) => `    ${quoted(path)}) words=${quoted(words.map(({ word }) => word).join(' '))} ;;`).join('\n')}
  esac
  case "$path \${COMP_WORDS[COMP_CWORD-1]}" in
${optionsWithValues(nodes)
  .map(({ after, values }) => `    ${quoted(after)}) words=${quoted(values.join(' '))} ;;`)
  .join('\n')}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _control_plane control-plane
`;

const zsh = (nodes: readonly Node[]): string => `#compdef control-plane
_control_plane() {
  local path_= word
  local -a entries
  for word in "\${(@)words[2,CURRENT-1]}"; do
    case "\${path_:+$path_ }$word" in
      ${nodes
        .filter(({ path }) => path !== '')
        .map(({ path }) => `(${quoted(path)})`)
        .join('|')}) path_="\${path_:+$path_ }$word" ;;
    esac
  done
  case "$path_" in
${nodes
  .map(
    ({ path, words }) =>
      `    (${quoted(path)}) entries=(${words.map(({ word, about }) => quoted(`${word}:${about.replaceAll(':', '\\:')}`)).join(' ')}) ;;`,
  )
  .join('\n')}
  esac
  case "$path_ \${words[CURRENT-1]}" in
${optionsWithValues(nodes)
  .map(({ after, values }) => `    (${quoted(after)}) entries=(${values.map(quoted).join(' ')}) ;;`)
  .join('\n')}
  esac
  _describe 'control-plane' entries || _files
}
_control_plane "$@"
`;

const fish = (nodes: readonly Node[]): string =>
  `# fish completion of control-plane
function __control_plane_path
  set -l path
  for word in (commandline -opc)[2..-1]
    set -l longer (string join ' ' -- $path $word)
    contains -- $longer ${nodes
      .filter(({ path }) => path !== '')
      .map(({ path }) => quoted(path))
      .join(' ')}; and set path $path $word
  end
  string join ' ' -- $path
end
${nodes
  .flatMap(({ path, words }) =>
    words.map(({ word, about, values }) => {
      const value = values ? ` -x -a ${quoted(values.join(' '))}` : '';
      const what = word.startsWith('--') ? `-l ${word.slice(2)}${value}` : `-f -a ${word}`;
      return `complete -c control-plane -n "test (__control_plane_path | string collect -a) = ${quoted(path)}" ${what} -d ${quoted(about)}`;
    }),
  )
  .join('\n')}
`;

const SCRIPTS: Readonly<Record<Shell, (nodes: readonly Node[]) => string>> = { bash, zsh, fish };
