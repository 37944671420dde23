/* What a person does to a program's console, for tests: console PID ctrl-c|ctrl-break|close|kill */
#include <stdlib.h>
#include <string.h>
#include <windows.h>

static BOOL WINAPI not_for_us(DWORD event) {
    (void)event;
    return TRUE;
}

int main(int count, char **words) {
    if (count != 3) return 2;
    DWORD pid = strtoul(words[1], NULL, 10);
    const char *what = words[2];
    if (!strcmp(what, "kill")) {
        HANDLE process = OpenProcess(PROCESS_TERMINATE, FALSE, pid);
        return !(process && TerminateProcess(process, 1));
    }
    FreeConsole();
    if (!AttachConsole(pid)) return 3;
    if (!strcmp(what, "close")) return !PostMessageW(GetConsoleWindow(), WM_CLOSE, 0, 0);
    SetConsoleCtrlHandler(NULL, TRUE);
    SetConsoleCtrlHandler(not_for_us, TRUE);
    DWORD event = strcmp(what, "ctrl-c") ? CTRL_BREAK_EVENT : CTRL_C_EVENT;
    return !GenerateConsoleCtrlEvent(event, 0);
}
