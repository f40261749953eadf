import type { Command } from 'commander';
import { id, labelOption, oneOf, seconds, whole } from './arguments';
import { fields } from './print';
import type { Terminal } from './terminal';
import { get, listing, listOf, perform, post, query, remove, verb } from './verbs';

const ROLES = ['viewer', 'operator', 'admin'];

const SHOWN_ONCE = 'The token is not shown again.';

/** Adds the commands about tokens: operators' and those that agents enroll with. */
export function addTokens(program: Command, terminal: Terminal): void {
  const token = program.command('token').description("give and withdraw operators' tokens");
  verb(
    token,
    'create <name>',
    "make an operator's token, and show it once; works on the database's file if no server runs",
    'token create alice --role operator --expires-in 90d',
  )
    .addOption(oneOf('--role <role>', 'what it may do', ROLES).makeOptionMandatory())
    .option(
      '--expires-in <duration>',
      'how long it is good for, such as 90d; forever if it is left out',
      seconds,
    )
    .action((name: string, { role, expiresIn: expires_in, ...options }) =>
      perform(
        terminal,
        options,
        post('/v1/operator-tokens', { name, role, expires_in }, false),
        (made) => `${fields(made)}\n\n${SHOWN_ONCE}`,
        { alsoWithoutServer: true },
      ),
    );
  listing(token, 'list', "list operators' tokens, withdrawn ones too", 'token list').action(
    ({ limit, cursor, ...options }) =>
      perform(
        terminal,
        options,
        get(`/v1/operator-tokens${query({ limit, cursor })}`),
        listOf('id', 'name', 'role', 'origin', 'created_at', 'expires_at', 'revoked_at', 'last_used_at'),
      ),
  );
  verb(token, 'revoke', 'withdraw a token, effective at once', 'token revoke 2')
    .argument('<id>', "the token's id", id)
    .action((of, options) =>
      perform(terminal, options, remove(`/v1/operator-tokens/${of}`), () => `Token ${of} is withdrawn.`),
    );

  const enrollment = program
    .command('enrollment')
    .description('give and withdraw tokens that agents register with');
  verb(
    enrollment,
    'create <name>',
    'make an enrollment token, and show it once',
    'enrollment create rack-7 --label region=eu --max-uses 20 --expires-in 1d',
  )
    .addOption(labelOption())
    .option('--expires-in <duration>', 'how long it is good for, such as 1d', seconds)
    .option('--max-uses <n>', 'how many agents may register with it', whole)
    .action((name: string, { label: labels, expiresIn: expires_in, maxUses: max_uses, ...options }) =>
      perform(
        terminal,
        options,
        post('/v1/enrollment-tokens', { name, labels, expires_in, max_uses }, false),
        (made) => `${fields(made)}\n\n${SHOWN_ONCE}`,
      ),
    );
  listing(enrollment, 'list', 'list enrollment tokens', 'enrollment list').action(
    ({ limit, cursor, ...options }) =>
      perform(
        terminal,
        options,
        get(`/v1/enrollment-tokens${query({ limit, cursor })}`),
        listOf('id', 'name', 'labels', 'uses', 'max_uses', 'created_at', 'expires_at', 'revoked_at'),
      ),
  );
  verb(enrollment, 'revoke', 'withdraw an enrollment token; its agents stay', 'enrollment revoke 3')
    .argument('<id>', "the token's id", id)
    .action((of, options) =>
      perform(
        terminal,
        options,
        remove(`/v1/enrollment-tokens/${of}`),
        () => `Enrollment token ${of} is withdrawn.`,
      ),
    );
}
