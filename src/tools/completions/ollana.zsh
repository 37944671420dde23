#compdef ollana
# zsh completion for ollana; made by `ollana completions zsh`.
_ollana() {
    local context state state_descr line
    typeset -A opt_args
    local -a commands
    commands=(
@names@    )
    _arguments -C \
@specs@@switches@        '(- *)'{-h,--help}'[what it can do]' \
        '(- *)'{-V,--version}'[the version]' \
        '1:command:->command' \
        '*::word:->word'
    case $state in
    command) _describe -t commands command commands ;;
    word)
        case $line[1] in
@words@        esac
        ;;
    esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _ollana "$@"
else
    compdef _ollana ollana
fi
